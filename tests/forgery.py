"""Faults put into a dataset: damage, and changes by somebody who computes every digest again."""

import hashlib
import json
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from reinforce.captioners import FakeCaptioner
from reinforce.config import BuildConfig
from reinforce.plan import BuildPlan, load_plan
from reinforce.shards.digests import FILE_DIGEST, document_text
from reinforce.shards.schema import FOOTER_KEY, canonical_json
from reinforce.shards.writer import ShardFileWriter
from reinforce.storage import open_store
from tests.fakes import run
from tests.models import save_open_clip, save_siglip_like
from tests.tars import image_bytes, write_tar

Members = list[tuple[str, bytes]]


def members_of_one() -> Members:
    """Kept k0..k5, of which k1 has no caption and k2 two; a drop, a repeated key and an unused member."""
    members = [(f"k{i}.png", image_bytes(i, 40 + i, 30)) for i in range(6)]
    members += [(f"k{i}.txt", f"a picture of {i} boats".encode()) for i in (0, 3, 4, 5)]
    members += [("k2.json", json.dumps({"more": ["two dogs", "a red cat"]}).encode())]
    return [*members, ("bad.png", image_bytes(7)[:200]), ("k0.png", image_bytes(8)), ("notes.md", b"-")]


def members_of_two() -> Members:
    return [("x.jpg", image_bytes(9, 60, 50, "JPEG")), ("x.txt", b"the sky"), ("y.png", image_bytes(10))]


def build_small(folder: Path) -> None:
    """`folder/dataset` from `folder/source`: two shards, two real teachers of random weights, a captioner, a bank."""
    write_tar(folder / "source/one.tar", members_of_one())
    write_tar(folder / "source/sub/two.tar", members_of_two())
    config = BuildConfig.model_validate(
        {
            "seed": 3,
            "batch_size": 4,
            "workers": 1,
            "device": "cpu",
            "views": {"count": 2, "hflip": 0.5},
            "source": {"captions": ["txt", "json.more"], "max_captions": 2},
            "teachers": {
                "a": {"model": save_open_clip(folder / "models/a"), "mantissa_bits": 7},
                "b": {"model": save_siglip_like(folder / "models/b"), "mantissa_bits": 10},
            },
            "banks": {"things": {"labels": ["cat", "dog", "boat"]}},
        }
    )
    captioner = FakeCaptioner("fake", image_size=16, num_captions=2)
    plan = BuildPlan(config, load_plan(config).teachers, [captioner])
    assert not run(plan, folder / "source", folder / "dataset").failed


def forge_file(
    path: Path,
    change: Callable[[pa.Table], pa.Table] = lambda table: table,
    change_footer: Callable[[dict[str, Any]], Any] = lambda footer: None,
) -> None:
    """Rewrites a Parquet file as the project's writer would have, with every digest right."""
    table, footer = pq.read_table(path), json.loads(pq.read_metadata(path).metadata[FOOTER_KEY])
    del footer[FILE_DIGEST]
    change_footer(footer)
    changed = change(table.replace_schema_metadata(None))
    with tempfile.TemporaryDirectory() as folder:
        writer = ShardFileWriter(Path(folder) / "spool", changed.schema)
        for batch in changed.to_batches():
            writer.append(batch)
        path.unlink()
        assert writer.commit(open_store(str(path.parent)), path.name, footer)


def forge_document(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrites a JSON document, with its digest right."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(document_text(document))


def with_column(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    """The table with other values in a column of the same type."""
    index = table.schema.get_field_index(name)
    return table.set_column(index, table.schema.field(index), pa.array(values, table.schema.field(index).type))


def captions_digest(path: Path) -> str:
    """`captions_sha256` of a captions file, by its definition."""
    table = pq.read_table(path)
    rows = zip(table["key"].to_pylist(), table["captions"].to_pylist(), strict=True)
    lines = (canonical_json([key, texts or []]) + "\n" for key, texts in rows)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@contextmanager
def flipped(path: Path, position: int) -> Iterator[None]:
    """The file with one bit of it flipped, for as long as this is open."""
    data = path.read_bytes()
    damaged = bytearray(data)
    damaged[position // 8] ^= 1 << position % 8
    path.write_bytes(damaged)
    try:
        yield
    finally:
        path.write_bytes(data)


def kind_of(path: Path) -> str:
    """The kind of a dataset's file, or of a tar."""
    if path.suffix == ".tar" or path.name in ("dataset.json", "signal.json", "bank.json"):
        return "source" if path.suffix == ".tar" else path.name
    tops = ("samples", "captions", "embeddings", "banks", "failures", "runs")
    top = next(name for name in path.parts if name in tops)
    return f"embeddings/{path.parts[path.parts.index(top) + 2]}" if top == "embeddings" else top


def random_bits(files: list[Path], count: int, seed: int) -> list[tuple[Path, int]]:
    """So many files, evenly over their kinds, each with the position of a bit in it."""
    generator = random.Random(seed)
    kinds: dict[str, list[Path]] = {}
    for path in sorted(files):
        kinds.setdefault(kind_of(path), []).append(path)
    found = []
    for number in range(count):
        path = generator.choice(list(kinds.values())[number % len(kinds)])
        found.append((path, generator.randrange(path.stat().st_size * 8)))
    return found
