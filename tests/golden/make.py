"""Makes the golden datasets: 8 source samples, two fake teachers, a fake captioner, a bank; modalities; corpora.

    python -m tests.golden.make

Run once a format version. What it writes is committed; `tests/test_format.py` builds it again and compares every byte.
"""

import gzip
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from rich.console import Console

from reinforce.captioners import FakeCaptioner
from reinforce.runners import run_plan
from reinforce.runners.asked import find_sentences
from reinforce.storage import open_store
from reinforce.teachers import FakeTeacher
from tests.fakes import fake_plan, run
from tests.tars import encode, image_bytes, write_tar

FOLDER = Path(__file__).parent
SOURCE = FOLDER / "source"
DATASET = FOLDER / "dataset"
MODALITY_SOURCE = FOLDER / "modalities" / "source"
MODALITY_DATASET = FOLDER / "modalities" / "dataset"
SENTENCES_SOURCE = FOLDER / "sentences" / "source"
SENTENCES_DATASET = FOLDER / "sentences" / "dataset"
LABELS = ["plain picture", "Bäumchen 木", "Plain  Picture", "wide one"]
"""The third is the first again."""


def write_source() -> None:
    """One tar: captions of several kinds, a folder in a key, a corrupt image and one that is missing."""
    write_tar(
        SOURCE / "scenes.tar",
        [
            ("plain.png", image_bytes(0)),
            ("plain.txt", b"a plain picture"),
            ("./folder.v1/wide.PNG", image_bytes(1, 90, 30)),
            ("./folder.v1/wide.json", b'{"captions": ["a wide picture", "it is wide"]}'),
            ("corrupt.png", image_bytes(2)[:-60]),
            ("corrupt.txt", b"never seen"),
            ("tall.png", image_bytes(3, 25, 70)),
            ("no_image.txt", b"a caption alone"),
            ("unicode.txt", "ein Bäumchen 木".encode()),
            ("unicode.png", image_bytes(4)),
            ("tiny.png", image_bytes(5, 3, 2)),
            ("tiny.txt", b"  two by three  "),
            ("last.png", image_bytes(6, 64, 64)),
            ("last.txt", b"the last one"),
        ],
    )


def build(output: Path) -> None:
    """The golden build, from the committed source."""
    plan = fake_plan(
        {
            "seed": 7,
            "source": {"captions": ["txt", "json.captions"], "max_captions": 2},
            "banks": {"scenes": {"labels": LABELS, "templates": ["a photo of a {}.", "{}"]}},
        },
        captioners=[FakeCaptioner("fake", image_size=16, num_captions=2)],
    )
    run(plan, SOURCE, output, source_root="file:///golden/source")
    shutil.rmtree(output / "runs")


def write_modality_source() -> None:
    """One tar: thermal images of 8 bits and depth of 16, one that is missing, one cut off, one beside a bad image."""
    depth = np.arange(12 * 8, dtype=np.uint16).reshape(8, 12) * 50
    thermal = encode(Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8)))
    write_tar(
        MODALITY_SOURCE / "pairs.tar",
        [
            ("both.png", image_bytes(0)),
            ("both.ir.png", thermal),
            ("both.depth.png", encode(Image.fromarray(depth))),
            ("thermal.png", image_bytes(1)),
            ("thermal.ir.png", thermal),
            ("bad.png", image_bytes(2)[:-60]),
            ("bad.ir.png", thermal),
            ("cut.png", image_bytes(3)),
            ("cut.ir.png", image_bytes(4)[:-60]),
            ("cut.depth.png", b""),
        ],
    )


def build_modalities(output: Path) -> None:
    """The golden build of modalities, from the committed source."""
    plan = fake_plan(
        {
            "views": {"count": 0},
            "source": {"captions": [], "max_captions": 0},
            "modalities": {"depth": {"suffix": "depth.png", "range": [500, 4000]}, "thermal": "ir.png"},
        },
        teachers=[FakeTeacher("small", dim=4)],
        captioners=[],
    )
    run(plan, MODALITY_SOURCE, output, source_root="file:///golden/modalities/source")
    shutil.rmtree(output / "runs")


def write_sentences_source() -> None:
    """Lines with a byte order mark and both line ends, objects compressed, rows; each with a record of every reason."""
    lines = [
        b"\xef\xbb\xbfA dog runs over grass.",
        "  Ein Bäumchen 木\t\r".encode(),
        b"",
        b" \t ",
        b"caf\xe9",
        b"A dog runs over grass.\r",
        b"a sentence of more than forty characters is too long",
        b"a dog runs over grass.",
        b"no line feed at its end",
    ]
    (SENTENCES_SOURCE / "news" / "more").mkdir(parents=True, exist_ok=True)
    (SENTENCES_SOURCE / "titles").mkdir(parents=True, exist_ok=True)
    (SENTENCES_SOURCE / "news" / "lines.txt").write_bytes(b"\n".join(lines))
    objects = [
        b'{"text": " two\\nlines ", "id": 1}',
        b'{"title": "no text"}',
        b'{"text": 7}',
        b'["text"]',
        b"{broken",
        b"",
        b'{"text": "half a pair \\ud800"}',
        json.dumps({"text": "Straße"}, ensure_ascii=False).encode(),
    ]
    # Stored, not deflated: the same bytes by any zlib.
    packed = gzip.compress(b"".join(line + b"\n" for line in objects), 0, mtime=0)
    (SENTENCES_SOURCE / "news" / "more" / "objects.jsonl.gz").write_bytes(packed)
    titles = ["short", None, "twelve chars and more", "twelve chars and less", "  ", "木木木木木木木木木木木木木"]
    pq.write_table(pa.table({"id": range(6), "title": titles}), SENTENCES_SOURCE / "titles" / "rows.parquet")


def build_sentences(output: Path) -> None:
    """The golden build of corpora, from the committed source. It has no images."""
    corpora = {
        "news": {"files": str(SENTENCES_SOURCE / "news"), "max_characters": 40},
        "titles": {
            "files": str(SENTENCES_SOURCE / "titles"),
            "column": "title",
            "max_characters": 13,
            "too_long": "truncate",
        },
    }
    plan = fake_plan(
        {"views": {"count": 0}, "source": {"captions": [], "max_captions": 0}, "corpora": corpora},
        teachers=[FakeTeacher("exact", dim=6, mantissa_bits=10), FakeTeacher("small", dim=4)],
        captioners=[],
    )
    store = open_store(str(output), create=True)
    found = find_sentences(plan.config, store)
    run_plan(
        plan,
        found.refs,
        store,
        source_root="file:///golden/sentences/source",
        corpus_roots={name: f"file:///golden/sentences/source/{name}" for name in found.roots},
        console=Console(file=io.StringIO()),
    )
    shutil.rmtree(output / "runs")


if __name__ == "__main__":
    write_source()
    build(DATASET)
    write_modality_source()
    build_modalities(MODALITY_DATASET)
    write_sentences_source()
    build_sentences(SENTENCES_DATASET)
