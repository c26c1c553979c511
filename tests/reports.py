"""A small dataset with something of everything a report shows, and its figures."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from reinforce.inspection.figures import (
    AgreementFigures,
    Distribution,
    DuplicateFigures,
    Figures,
    Problem,
    RunFigures,
    SampleName,
)
from reinforce.inspection.stats import inspect_dataset
from tests.fakes import fake_plan, run
from tests.tars import image_bytes, write_tar

SCRIPT = "<script>alert(1)</script> & more"
HTML = b"<!DOCTYPE html>\n<html><body>Not Found</body></html>"
JPEG = image_bytes(30, 200, 120, "JPEG")


def one() -> list[tuple[str, bytes]]:
    """Kept are k0..k4 and a key that is markup, k1 without a caption; a drop of every reason but one."""
    members = [(f"k{i}.png", image_bytes(i, 40 + i, 30)) for i in range(5)]
    members += [("k0.txt", SCRIPT.encode()), ("k2.txt", b"two"), ("k3.txt", b"three words here"), ("k4.txt", b"four")]
    members += [("<b>.png", image_bytes(6)), ("<b>.txt", b"a key that is markup")]
    members += [("cut.jpg", JPEG[: len(JPEG) // 2]), ("k0.png", image_bytes(8)), ("page.jpg", HTML), ("empty.png", b"")]
    return [*members, ("words.txt", b"no image here")]


def build_everything(folder: Path) -> None:
    """Writes `source` (two shards, one in a subfolder) and `dataset`, built from it by two teachers and a captioner."""
    write_tar(folder / "source/sub/one.tar", one())
    write_tar(folder / "source/two.tar", [("large.png", image_bytes(9, 300, 150)), ("large.txt", b"a caption")])
    assert not run(fake_plan(), folder / "source", folder / "dataset").failed


def full_figures(dataset: Path) -> Figures:
    """The figures of the dataset, with those that take more than it has made up."""
    figures = inspect_dataset(str(dataset))
    alike = (SampleName("sub/one", "k0"), SampleName("sub/one", "k1"))
    words = Distribution.of(np.array([1, 1, 2, 3, 3, 4, 9], np.float64))
    return replace(
        figures,
        doubts=(),
        problems=(Problem("samples/<i>.parquet", "is <u>odd</u>"),),
        failures={"sub/<s>": "cannot be <em>read</em>"},
        captions=tuple(replace(found, words=words, num_copies=2) for found in figures.captions),
        drifts=tuple(replace(found, by_view=(0.5, 0.75)) for found in figures.drifts),
        agreements=(AgreementFigures(("large", "small"), 7, 3, 0.5, 0.25),),
        duplicates=(DuplicateFigures("large", 0.95, 7, 1, 1, True, (alike,)),),
        runs=(
            RunFigures("run-1", "2026-01-01T00:00:00Z", None, 8.0, 2, 2, 0, 12, {"decode": 6.0, "teachers": 2.0}, ""),
        ),
        null_examples={"embeddings/large/text/original": {"no_caption": (SampleName("sub/one", "k1"),)}},
    )
