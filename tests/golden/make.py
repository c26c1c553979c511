"""Makes the golden dataset: 8 source samples, two fake teachers, one fake captioner, a bank. Run once a format version.

    python -m tests.golden.make

What it writes is committed; `tests/test_format.py` builds it again and compares every byte.
"""

import shutil
from pathlib import Path

from reinforce.captioners import FakeCaptioner
from tests.fakes import fake_plan, run
from tests.tars import image_bytes, write_tar

FOLDER = Path(__file__).parent
SOURCE = FOLDER / "source"
DATASET = FOLDER / "dataset"
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


if __name__ == "__main__":
    write_source()
    build(DATASET)
