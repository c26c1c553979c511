"""`reinforce inspect`: exact figures of a small build, and faults put into copies of it."""

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

from reinforce.captioners import CaptionRequest, FakeCaptioner
from reinforce.cli import app
from reinforce.inspection import table, words
from reinforce.inspection.figures import BankFigures, Figures, Missing
from reinforce.inspection.stats import inspect_dataset
from reinforce.inspection.values import evenly
from reinforce.shards.reader import FormatError
from tests.fakes import fake_plan, run
from tests.tars import image_bytes, write_tar

SCRIPT = "[bold]brackets[/bold] & <script>alert(1)</script>"
LONG = "a caption of more than sixty characters, which the fake tokenizer cuts short"


class SometimesSilent(FakeCaptioner):
    """Gives no caption for one sample and a common one for the others."""

    def caption(self, requests: Any) -> list[list[str]]:
        return [[] if request.key == "k1" else self._two(request) for request in requests]

    def _two(self, request: CaptionRequest) -> list[str]:
        return ["a common caption", f"a picture called {request.key}"]


def _one() -> list[tuple[str, bytes]]:
    """Kept k0..k4, of which k1 has no caption and k2 three, one over the bound; two drops; one unused member."""
    members = [(f"k{i}.png", image_bytes(i, 40 + i, 30)) for i in range(5)]
    members += [("k0.txt", SCRIPT.encode()), ("k3.txt", LONG.encode()), ("k4.txt", b"a caption")]
    members += [("k2.json", json.dumps({"more": ["one", "a caption", "three"]}).encode())]
    members += [("bad.png", image_bytes(7)[:200]), ("k0.png", image_bytes(8)), ("notes.md", b"-")]
    return members


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `source` (two shards, one in a subfolder) and `dataset`, built from it."""
    folder = tmp_path_factory.mktemp("inspect")
    write_tar(folder / "source/sub/one.tar", _one())
    write_tar(folder / "source/two.tar", [("large.png", image_bytes(9, 200, 100)), ("large.txt", b"a caption")])
    plan = fake_plan(
        {
            "source": {"captions": ["txt", "json.more"], "max_captions": 2},
            "banks": {"things": {"labels": ["cat", "Cat", LONG], "templates": ["a {}", "{}"]}},
        },
        captioners=[SometimesSilent("fake", image_size=16)],
    )
    assert not run(plan, folder / "source", folder / "dataset").failed
    return folder


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    """A copy of the dataset, to be damaged."""
    return Path(shutil.copytree(built / "dataset", tmp_path / "dataset"))


@pytest.fixture(scope="module")
def figures(built: Path) -> Figures:
    return inspect_dataset(str(built / "dataset"))


def _signal(figures: Figures, folder: str) -> Any:
    return next(signal for signal in figures.signals if signal.folder == folder)


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.parquet"))


def test_counts_are_those_of_the_source(figures: Figures, built: Path) -> None:
    assert (figures.num_shards, figures.num_samples, figures.num_kept) == (2, 8, 6)
    assert {drop.reason: drop.count for drop in figures.drops} == {"corrupt_image": 1, "duplicate_key": 1}
    examples = {example.key: example.stem for drop in figures.drops for example in drop.examples}
    assert examples == {"bad": "sub/one", "k0": "sub/one"}
    assert figures.left_out == {"captions_over_bound": 1, "unused_members": 1}
    assert figures.source_bytes == sum(path.stat().st_size for path in (built / "source").rglob("*.tar"))
    assert figures.sampled_stems == ("sub/one", "two")
    assert not figures.problems
    assert not figures.failures


def test_bytes_are_those_of_the_files(figures: Figures, built: Path) -> None:
    dataset = built / "dataset"
    assert figures.spine_bytes == _bytes_below(dataset / "samples")
    assert figures.total_bytes == _bytes_below(dataset)
    for signal in figures.signals:
        assert signal.num_bytes == _bytes_below(dataset / signal.folder)
        assert signal.bytes_per_kept == signal.num_bytes / 6
        assert (signal.num_files, signal.missing) == (2, Missing(0))


def test_nulls_and_truncated_texts_by_signal(figures: Figures) -> None:
    nulls = {signal.folder: signal.nulls for signal in figures.signals if signal.nulls}
    # Original captions by sample: 1, 0, 2, 1, 1 and 1, in 2 columns. The captioner is silent once, in 2 columns.
    assert nulls == {
        "captions/fake": {"captioner_failed": 1},
        "embeddings/large/text/fake": {"no_caption": 2},
        "embeddings/large/text/original": {"no_caption": 6},
        "embeddings/small/text/fake": {"no_caption": 2},
        "embeddings/small/text/original": {"no_caption": 6},
    }
    assert _signal(figures, "embeddings/small/text/original").num_truncated_texts == 1
    assert _signal(figures, "embeddings/small/text/fake").num_truncated_texts == 0


def test_captions_by_source(figures: Figures) -> None:
    original, fake = figures.captions
    assert (original.source, original.num_samples, original.num_captions) == ("original", 6, 6)
    # Three times "a caption", "one", and two longer ones.
    assert (original.words_min, original.words_median, original.words_max) == (1, 2.0, 13)
    assert original.most_frequent[0] == ("a caption", 3)
    assert original.distinct_ratio == 4 / 6
    assert (fake.source, fake.captions_per_sample, fake.distinct_ratio) == ("fake", 10 / 6, 6 / 10)
    assert fake.most_frequent[0] == ("a common caption", 5)


def _column(built: Path, folder: str, stem: str, column: str) -> np.ndarray:
    """Straight from Parquet, by another way than the reader's."""
    cells = pq.read_table(built / "dataset" / folder / f"{stem}.parquet")[column].to_pylist()
    width = len(next(cell for cell in cells if cell is not None))
    return np.array([[np.nan] * width if cell is None else cell for cell in cells], np.float64)


def _unit(rows: np.ndarray) -> np.ndarray:
    """At unit norm again, as the format asks for before a cosine."""
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


@pytest.mark.parametrize("teacher", ["large", "small"])
@pytest.mark.parametrize("source", ["original", "fake"])
def test_cosines_are_those_of_the_stored_arrays(figures: Figures, built: Path, teacher: str, source: str) -> None:
    matched, mismatched = [], []
    for stem in ("sub/one", "two"):
        image = _unit(_column(built, f"embeddings/{teacher}/image", stem, "view_000"))
        for column in ("caption_000", "caption_001"):
            if stem == "two" and source == "original" and column == "caption_001":
                continue  # all null
            text = _unit(_column(built, f"embeddings/{teacher}/text/{source}", stem, column))
            matched += [float(i @ t) for i, t in zip(image, text, strict=True)]
            mismatched += [float(image[row] @ text[row - 1]) for row in range(len(image) if stem == "sub/one" else 0)]
    found = next(c for c in figures.cosines if (c.teacher, c.source) == (teacher, source))
    assert found.matched.count == np.isfinite(matched).sum()
    assert found.matched.mean == pytest.approx(np.nanmean(matched), abs=1e-6)
    quantiles = np.nanquantile(matched, [0.05, 0.5, 0.95])
    assert [found.matched.q05, found.matched.median, found.matched.q95] == pytest.approx(quantiles, abs=1e-6)
    assert found.mismatched_mean == pytest.approx(np.nanmean(mismatched), abs=1e-6)


@pytest.mark.parametrize("teacher", ["large", "small"])
def test_norms_and_drift_are_those_of_the_stored_arrays(figures: Figures, built: Path, teacher: str) -> None:
    views = {
        column: np.concatenate(
            [_column(built, f"embeddings/{teacher}/image", stem, column) for stem in figures.sampled_stems]
        )
        for column in ("view_000", "view_001", "view_002")
    }
    worst = max(np.abs(np.linalg.norm(matrix, axis=1) - 1).max() for matrix in views.values())
    assert _signal(figures, f"embeddings/{teacher}/image").max_norm_error == pytest.approx(worst, abs=1e-6)
    cosines = [(_unit(views["view_000"]) * _unit(views[column])).sum(axis=1) for column in ("view_001", "view_002")]
    drift = next(drift for drift in figures.drifts if drift.teacher == teacher)
    assert (drift.num_views, drift.cosine.count) == (2, 12)
    assert drift.cosine.mean == pytest.approx(np.mean(cosines), abs=1e-6)


def test_missing_files_and_shards_are_named(copy: Path, built: Path) -> None:
    write_tar(copy.parent / "source/new.tar", [("a.png", image_bytes(1))])
    shutil.copytree(built / "source", copy.parent / "source", dirs_exist_ok=True)
    (copy / "embeddings/small/image/sub/one.parquet").unlink()
    source = str(copy.parent / "source")
    figures = inspect_dataset(str(copy), shards=[source], root=source)
    assert _signal(figures, "embeddings/small/image").missing == Missing(1, ("sub/one",))
    assert _signal(figures, "embeddings/large/image").missing == Missing(0)
    assert figures.missing_shards == Missing(1, ("new",))
    assert not figures.problems
    # What needs the missing file is taken from the other shard alone.
    assert {(c.teacher, c.source): c.matched.count for c in figures.cosines}["small", "fake"] == 2


def _swap_shards(copy: Path) -> str:
    shutil.copy(copy / "embeddings/small/image/two.parquet", copy / "embeddings/small/image/sub/one.parquet")
    return "stem"


def _swap_signals(copy: Path) -> str:
    shutil.copy(copy / "embeddings/large/image/sub/one.parquet", copy / "embeddings/small/image/sub/one.parquet")
    return "signal"


def _edit_footer(copy: Path) -> str:
    _rewrite(copy / "embeddings/small/image/sub/one.parquet", lambda footer: footer | {"fingerprint": "f" * 64})
    return "fingerprint"


def _reorder_rows(copy: Path) -> str:
    _rewrite(copy / "embeddings/small/image/sub/one.parquet", reverse=True)
    return "row 0 is 'k4'"


def _lose_a_null(copy: Path) -> str:
    _rewrite(copy / "embeddings/small/image/sub/one.parquet", lambda footer: footer | {"nulls": {"non_finite": 1}})
    return "its footer counts 1"


def _cut_short(copy: Path) -> str:
    path = copy / "embeddings/small/image/sub/one.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    return "not a file of this format"


def _flip_a_bit(copy: Path) -> str:
    path = copy / "embeddings/small/image/sub/one.parquet"
    data = bytearray(path.read_bytes())
    column = pq.read_metadata(path).row_group(0).column(2)
    data[column.data_page_offset + column.total_compressed_size - 4] ^= 1
    path.write_bytes(data)
    return "damaged"


def _rewrite(path: Path, edit: Callable[[dict], dict] = dict, *, reverse: bool = False) -> None:
    rows = pq.read_table(path)
    footer = edit(json.loads(pq.read_metadata(path).metadata[b"reinforce"]))
    rows = rows.take(list(range(len(rows)))[::-1]) if reverse else rows
    pq.write_table(rows.replace_schema_metadata({b"reinforce": json.dumps(footer)}), path, write_page_checksum=True)


@pytest.mark.parametrize(
    "damage",
    [_swap_shards, _swap_signals, _edit_footer, _reorder_rows, _lose_a_null, _cut_short, _flip_a_bit],
)
def test_a_file_that_does_not_fit_is_a_problem(copy: Path, figures: Figures, damage: Callable[[Path], str]) -> None:
    what = damage(copy)
    found = inspect_dataset(str(copy))
    assert [problem.path for problem in found.problems] == ["embeddings/small/image/sub/one.parquet"]
    assert what in found.problems[0].what
    assert _signal(found, "embeddings/large/image") == _signal(figures, "embeddings/large/image")
    assert what in _printed(found)


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("samples/two.parquet", "num_kept"),
        ("samples/two.parquet", "counts"),
        ("embeddings/large/image/two.parquet", "nulls"),
    ],
)
def test_a_footer_without_a_field_is_a_problem(copy: Path, path: str, field: str) -> None:
    data = (copy / path).read_bytes()
    assert data.count(f'"{field}"'.encode()) >= 1
    (copy / path).write_bytes(data.replace(f'"{field}"'.encode(), f'"{field[:-1]}_"'.encode()))
    problems = inspect_dataset(str(copy)).problems
    assert path in {problem.path for problem in problems}


def test_files_that_nothing_explains_are_problems(copy: Path) -> None:
    (copy / "samples/two.parquet").unlink()
    (copy / "captions/fake/signal.json").unlink()
    paths = {problem.path: problem.what for problem in inspect_dataset(str(copy)).problems}
    assert "no spine" in paths["embeddings/small/image/two.parquet"]
    assert "2 files are there, and no signal.json" in paths["captions/fake"]
    assert "embeddings/small/image/sub/one.parquet" not in paths


def test_banks_are_told_and_those_that_do_not_fit_are_problems(copy: Path, figures: Figures) -> None:
    cut = {"large": 2, "small": 2}
    assert figures.banks == (BankFigures("things", 2, 2, 1, ("large", "small"), (), cut),)
    line = "bank things: 2 labels x 2 templates by large, small; 1 repeated label left out; 2 prompts longer than large"
    assert line in _printed(figures)
    (copy / "banks/things/small.parquet").unlink()
    shutil.copytree(copy / "banks/things", copy / "banks/lost")
    (copy / "banks/lost/bank.json").unlink()
    _rewrite(copy / "banks/things/large.parquet", lambda footer: footer | {"weights_sha256": "f" * 64})
    found = inspect_dataset(str(copy))
    assert [(bank.name, bank.teachers, bank.missing_teachers) for bank in found.banks] == [
        ("things", (), ("large", "small"))
    ]
    problems = {problem.path: problem.what for problem in found.problems}
    assert "is missing" in problems["banks/lost/bank.json"]
    assert "not that of embeddings/large/image" in problems["banks/things/large.parquet"]
    assert len(problems) == 2


def test_failures_are_listed_with_their_reason(copy: Path) -> None:
    (copy / "failures/sub").mkdir(parents=True)
    (copy / "failures/sub/three.json").write_text('{"error": "is truncated"}')
    found = inspect_dataset(str(copy))
    assert found.failures == {"sub/three": "is truncated"}
    assert "sub/three: is truncated" in _printed(found)


def test_values_are_of_as_many_shards_as_said(built: Path) -> None:
    found = inspect_dataset(str(built / "dataset"), num_sampled=1)
    assert found.sampled_stems == ("sub/one",)
    assert found.num_samples == 8
    assert "from 5 samples of 1 of 2 shards" in _printed(found)
    assert evenly(range(100), 4) == [0, 25, 50, 75]


def test_a_build_that_has_just_begun(copy: Path) -> None:
    for path in copy.rglob("*.parquet"):
        path.unlink()
    found = inspect_dataset(str(copy))
    assert (found.num_shards, found.problems, found.cosines) == (0, (), ())
    assert "no shards yet" in _printed(found)


def test_what_is_no_dataset_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="not a reinforced dataset"):
        inspect_dataset(str(tmp_path))


def _printed(figures: Figures) -> str:
    file = io.StringIO()
    Console(file=file, width=80).print(table.render_table(figures))
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    return " ".join(" ".join(line.split()) for line in lines)


def test_the_command_prints_a_table_or_json(built: Path, figures: Figures) -> None:
    printed = CliRunner().invoke(app, ["inspect", str(built / "dataset"), "--json"])
    assert printed.exit_code == 0
    assert json.loads(printed.stdout) == figures.to_json()
    assert json.loads(json.dumps(figures.to_json(), allow_nan=False)) == figures.to_json()
    shown = replace(figures.captions[0], most_frequent=((SCRIPT, 2),))
    text = _printed(replace(figures, captions=(shown,)))
    assert "2 shards, 8 samples, 6 kept, 2 dropped" in text
    assert "1 corrupt_image: sub/one/bad" in text
    assert "6 no_caption in large/text/original" in text
    assert "[bold]brackets[/bold]" in text


def test_captions_are_printed_as_they_are() -> None:
    assert words.printable("\x1b[31mred\n two") == "\N{REPLACEMENT CHARACTER}[31mred two"
    assert [words.format_bytes(n) for n in (999, 1000, 99_940, 999_499, 10**12)] == [
        "999 B", "1.0 kB", "99.9 kB", "999 kB", "1.0 TB",
    ]  # fmt: skip
