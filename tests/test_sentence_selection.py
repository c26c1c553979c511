"""Sentences near images: the search, and every criterion after it, against the same by hand; and what is refused."""

import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from reinforce import open_dataset
from reinforce.cli import app
from reinforce.config import ConfigError
from reinforce.selection import (
    SentenceCriteria,
    SentenceOutcome,
    grounding,
    read_selection,
    select_sentences,
    sentences,
)
from reinforce.selection.cells import sort_into_cells
from reinforce.selection.sentence_outcome import describe_sentences
from reinforce.shards.reader import FormatError
from reinforce.storage import open_store
from tests.clean_views import write_clean_views
from tests.corpora import write_corpus
from tests.s3_server import S3Server, use_test_credentials

DIM = 8
Name = tuple[str, str]


def unit(rows: int, seed: int) -> np.ndarray:
    """As stored: unit norm, rounded."""
    values = np.random.default_rng(seed).standard_normal((rows, DIM))
    return np.asarray(values / np.linalg.norm(values, axis=1, keepdims=True), np.float16)


def cosines_of(ones: np.ndarray, twos: np.ndarray) -> np.ndarray:
    one, two = ones.astype(np.float64), twos.astype(np.float64)
    return np.asarray((one @ two.T) / np.sqrt((one * one).sum(1)[:, None] * (two * two).sum(1)))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, rows in (
        (grounding, "_BLOCK_ROWS", 64),
        (grounding, "_PAIRS_AT_A_TIME", 50),
        (sentences, "IMAGE_ROWS", 200),
    ):
        monkeypatch.setattr(module, name, rows)


@pytest.mark.parametrize("count", [1, 5, 30, 200])
def test_what_is_near_is_what_brute_force_finds(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Across blocks, with equal sentences, equal images, and fewer sentences than are asked for."""
    monkeypatch.setattr(grounding, "_BLOCK_ROWS", 16)
    monkeypatch.setattr(grounding, "_PAIRS_AT_A_TIME", 7)
    images, rows = unit(130, 0), unit(117, 1)
    rows[40:60], images[70:80] = rows[3], images[2]
    images[5], rows[100] = rows[3], images[2]
    tops = io.BytesIO()
    numbers = np.arange(130) * 3
    blocks = [(numbers[start : start + 50], images[start : start + 50]) for start in range(0, 130, 50)]
    found = grounding.ground(iter(blocks), rows, count, tops)
    cosines = cosines_of(images, rows)
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
    written = np.frombuffer(tops.getvalue(), np.int32).reshape(130, count)
    np.testing.assert_array_equal(written[:, :117], nearest)
    assert (written[:, 117:] == -1).all()
    np.testing.assert_array_equal(found.scores, cosines.max(axis=0))
    np.testing.assert_array_equal(found.images, numbers[cosines.argmax(axis=0)])
    ranks = [
        min(np.flatnonzero(nearest == place) % nearest.shape[1], default=grounding.NOT_NEAR) for place in range(117)
    ]
    assert found.ranks.tolist() == ranks


def test_what_float32_cannot_tell_apart_is_in_its_exact_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cosines that differ by a billionth, a hundredth of what a product of float32 is off by."""
    monkeypatch.setattr(grounding, "_BLOCK_ROWS", 32)
    generator = np.random.default_rng(8)
    like = (generator.standard_normal(64) / 8 + 1e-4 * generator.standard_normal((260, 64))).astype(np.float16)
    images, rows = like[:60], like[60:]
    tops = io.BytesIO()
    found = grounding.ground(iter([(np.arange(60), images)]), rows, 5, tops)
    cosines = cosines_of(images, rows)
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(np.frombuffer(tops.getvalue(), np.int32).reshape(60, 5), nearest)
    np.testing.assert_array_equal(found.images, cosines.argmax(axis=0))


@pytest.mark.parametrize("num_probed", [2, 11])
def test_in_cells_what_is_near_is_what_brute_force_finds_in_these(
    num_probed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 11 cells. One of them is as large as three blocks: 40 sentences are equal."""
    monkeypatch.setattr(grounding, "_BLOCK_ROWS", 16)
    images, rows = unit(90, 0), unit(117, 1)
    rows[40:80] = rows[3]
    with (tmp_path / "cells").open("w+b") as file:
        cells = sort_into_cells(rows, file)
    assert sorted(cells.places.tolist()) == list(range(117))
    np.testing.assert_array_equal(cells.rows, rows[cells.places])
    tops = io.BytesIO()
    blocks = [(np.arange(start, start + 45), images[start : start + 45]) for start in (0, 45)]
    found = grounding.ground(iter(blocks), rows, 5, tops, cells=cells, num_probed=num_probed)
    cell_of = (rows.astype(np.float64) @ cells.centres.T).argmax(axis=1)
    probed = np.argsort(-(images.astype(np.float64) @ cells.centres.T), axis=1)[:, :num_probed]
    is_met = (cell_of[None, None] == probed[:, :, None]).any(axis=1)
    cosines = np.where(is_met, cosines_of(images, rows), -np.inf)
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :5]
    expected = np.where(np.take_along_axis(is_met, nearest, axis=1), nearest, -1)
    np.testing.assert_array_equal(np.frombuffer(tops.getvalue(), np.int32).reshape(90, 5), expected)
    np.testing.assert_array_equal(found.scores, cosines.max(axis=0))
    np.testing.assert_array_equal(found.images, np.where(is_met.any(axis=0), cosines.argmax(axis=0), -1))
    assert is_met.all() == (num_probed == 11)


@dataclass(frozen=True)
class Data:
    """A dataset, and what is in it by name, in its order."""

    folder: Path
    images: dict[Name, np.ndarray]
    sentences: dict[Name, np.ndarray]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Two shards of images and three files of two corpora, of more than a row group; what is null, what is twice."""
    folder = tmp_path_factory.mktemp("sentences") / "out"
    shards = {"a": unit(40, 2), "sub/b": unit(1100, 3)}
    shards["sub/b"][7] = np.nan
    shards["sub/b"][9] = shards["a"][1]
    write_clean_views(folder, shards, "t")
    files = {("news", "00"): unit(300, 4), ("news", "x/01"): unit(60, 5), ("captions", "00"): unit(1200, 6)}
    files["news", "00"][5] = files["captions", "00"][1190]
    files["news", "x/01"][:10] = files["news", "00"][11]
    files["news", "x/01"][20] = np.nan
    for corpus in ("news", "captions"):
        texts = {
            name: [f"{name} {row}" for row in range(len(rows))] for (c, name), rows in files.items() if c == corpus
        }
        texts = {name: ["", *lines] for name, lines in texts.items()}  # the first record of each is dropped
        rows = {name: rows for (c, name), rows in files.items() if c == corpus}
        write_corpus(folder, corpus, texts, {"t": rows})
    opened = open_dataset(str(folder))
    images = {
        (stem, key): row
        for stem in ("a", "sub/b")
        for key, row in zip(
            opened.spine(stem).column("key").to_pylist(),
            opened.numpy("embeddings/t/image", stem, "view_000"),
            strict=True,
        )
    }
    found = {
        (f"corpora/{corpus}/{name}", str(row + 2)): values
        for (corpus, name), rows in sorted(files.items())
        for row, values in enumerate(rows)
    }
    return Data(folder, images, found)


@dataclass(frozen=True)
class Expected:
    rows: dict[Name, dict[str, Any]]
    left_out: dict[str, int]
    num_covered: int


def by_hand(
    data: Data,
    nearest: int,
    *,
    images: Any = None,
    corpora: tuple[str, ...] = ("news", "captions"),
    min_score: float = -1,
    dedup: float | None = None,
    max_per_image: int | None = None,
    keep: int | None = None,
) -> Expected:
    """One sentence after another, without blocks."""
    there = {name: row for name, row in data.images.items() if images is None or name in images}
    there = {name: row for name, row in there.items() if np.isfinite(row).all()}
    asked = {name: row for name, row in data.sentences.items() if name[0].split("/")[1] in corpora}
    usable = {name: row for name, row in asked.items() if np.isfinite(row).all()}
    image_names, names, rows = list(there), list(usable), np.stack(list(usable.values()))
    cosines = cosines_of(np.stack(list(there.values())), rows)
    tops = np.argsort(-cosines, axis=1, kind="stable")[:, :nearest]
    scores = cosines.max(axis=0).astype(np.float32)
    image_of = cosines.argmax(axis=0)
    ranks = {place: int(rank) for rank in reversed(range(tops.shape[1])) for place in tops[:, rank].tolist()}
    left_out = {"no_score": len(asked) - len(usable), "not_nearest": len(usable) - len(ranks)}
    staying = [place for place in ranks if scores[place] >= np.float32(min_score)]
    left_out["below_min_score"] = len(ranks) - len(staying)
    staying.sort(key=lambda place: (-scores[place], place))
    instead = {place: place for place in staying}
    if dedup is not None:
        alike, distinct = cosines_of(rows, rows), list[int]()
        for place in staying:
            instead[place] = next((other for other in distinct if alike[place, other] >= dedup), place)
            distinct += [place] if instead[place] == place else []
        left_out["duplicate"], staying = len(staying) - len(distinct), distinct
    if max_per_image is not None:
        chosen, counts = [], dict.fromkeys(range(len(there)), 0)
        for place in staying:
            counts[image_of[place]] += 1
            chosen += [place] if counts[image_of[place]] <= max_per_image else []
        left_out["over_max_per_image"], staying = len(staying) - len(chosen), chosen
    if keep is not None:
        ranked = sorted(staying, key=lambda place: (ranks[place], -scores[place], place))
        left_out["beyond_keep"], staying = len(ranked[keep:]), ranked[:keep]
    is_covered = [any(instead.get(place) in set(staying) for place in top) for top in tops.tolist()]
    found = {}
    for place in sorted(staying):
        image = image_names[image_of[place]]
        found[names[place]] = {"score": scores[place], "image": image, "rank": ranks[place]}
    return Expected(found, {reason: count for reason, count in left_out.items() if count}, sum(is_covered))


def select(folder: Path, output: Path, **asked: Any) -> SentenceOutcome:
    asked = dict[str, Any](corpora=("news", "captions"), nearest=3) | asked
    return select_sentences(open_dataset(str(folder)), str(output), SentenceCriteria(**asked))


def rows_of(output: Path) -> Iterator[tuple[Name, dict[str, Any]]]:
    for row in pq.read_table(output).to_pylist():
        yield (
            (row["stem"], row["key"]),
            {"score": row["score"], "image": (row["image_stem"], row["image_key"]), "rank": row["rank"]},
        )


ASKED: list[dict[str, Any]] = [
    {},
    {"nearest": 1, "corpora": ("captions",)},
    {"min_score": 0.9, "dedup": 0.97},
    {"max_per_image": 1},
    {"keep": 100},
    {"nearest": 2, "min_score": 0.85, "dedup": 0.95, "max_per_image": 2, "keep": 300},
]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: " ".join(asked) or "nothing")
def test_a_selection_is_what_is_found_by_hand(data: Data, tmp_path: Path, asked: dict[str, Any]) -> None:
    outcome = select(data.folder, tmp_path / "s", **asked)
    expected = by_hand(data, **({"nearest": 3} | asked))
    assert list(rows_of(tmp_path / "s")) == list(expected.rows.items())
    assert {left.reason.value: left.count for left in outcome.left_out} == expected.left_out
    assert outcome.num_kept == len(expected.rows) == outcome.num_sentences - sum(expected.left_out.values())
    assert (outcome.num_images_met, outcome.num_images_covered) == (1139, expected.num_covered)
    assert len(expected.left_out) == 1 + ("news" in asked.get("corpora", ("news",))) + len(
        asked.keys() - {"nearest", "corpora"}
    )


@pytest.mark.parametrize("probe", [None, 2])
def test_images_that_have_no_clean_view_meet_nothing(
    probe: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a row group of them, after as many others as meet the sentences together, nor all there are."""
    monkeypatch.setattr(sentences, "IMAGE_ROWS", 20)
    nothing, rows = np.full((5, DIM), np.nan, np.float16), unit(30, 9)
    for folder, shards in (("some", {"a": unit(20, 8), "b": nothing}), ("none", {"b": nothing})):
        write_clean_views(tmp_path / folder, shards, "t")
        write_corpus(tmp_path / folder, "news", {"0": [str(row) for row in range(30)]}, {"t": {"0": rows}})
    outcome = select(tmp_path / "some", tmp_path / "s", corpora=("news",), probe=probe)
    assert (outcome.num_images_met, outcome.num_images_covered) == (20, 20)
    assert [(left.reason.value, left.count) for left in outcome.images_left_out] == [("no_score", 5)]
    with pytest.raises(ConfigError, match=r"near none of 5 images \(5 without a clean view\); build"):
        select(tmp_path / "none", tmp_path / "s", corpora=("news",), probe=probe)


def test_the_same_file_whatever_the_blocks(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And it says what made it, and is read as a selection."""
    asked = {"corpora": ("captions", "news"), "dedup": 0.97, "keep": 200}
    outcome = select(data.folder, tmp_path / "one", **asked)
    monkeypatch.setattr(grounding, "_BLOCK_ROWS", 100)
    monkeypatch.setattr(sentences, "IMAGE_ROWS", 333)
    select(data.folder, tmp_path / "two", **asked)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    footer = json.loads(pq.read_schema(tmp_path / "one").metadata[b"reinforce"])
    assert (footer["format_version"], footer["kind"], footer["num_kept"]) == (1, "selection", 200)
    assert footer["criteria"] == {"corpora": ["captions", "news"], "nearest": 3, "dedup": 0.97, "keep": 200}
    folders = ["corpora/captions/embeddings/t", "corpora/news/embeddings/t", "embeddings/t/image"]
    assert sorted(footer["signals"]) == folders
    assert footer["left_out"] == {left.reason.value: left.count for left in outcome.left_out}
    selection = read_selection(str(tmp_path / "one"))
    assert {(stem, key) for stem in selection.stems for key in selection.keys(stem)} == dict(
        rows_of(tmp_path / "one")
    ).keys()


def test_cells_are_the_same_every_time_and_all_of_them_are_exact(data: Data, tmp_path: Path) -> None:
    select(data.folder, tmp_path / "exact")
    for name, probe in (("all", 1000), ("few", 2), ("again", 2)):
        select(data.folder, tmp_path / name, probe=probe)
    assert list(rows_of(tmp_path / "all")) == list(rows_of(tmp_path / "exact"))
    assert (tmp_path / "few").read_bytes() == (tmp_path / "again").read_bytes()
    assert list(rows_of(tmp_path / "few")) != list(rows_of(tmp_path / "exact"))


def test_images_and_sentences_are_narrowed_by_selections(data: Data, tmp_path: Path) -> None:
    """`--images` narrows the images; `--within`, `--without` and `--split` the sentences."""
    some = list(data.images)[5:60]
    table = {"stem": [stem for stem, _ in some], "key": [key for _, key in some]}
    pq.write_table(pa.table(table), tmp_path / "images.parquet")
    outcome = select(data.folder, tmp_path / "s", images=str(tmp_path / "images.parquet"))
    expected = by_hand(data, 3, images=set(some))
    assert dict(rows_of(tmp_path / "s")) == expected.rows
    assert [(left.reason.value, left.count) for left in outcome.images_left_out] == [
        ("not_within", 1085),
        ("no_score", 1),
    ]
    again = select(data.folder, tmp_path / "again", within=(str(tmp_path / "s"),), split=(0, 0.5), min_score=-1)
    kept = dict(rows_of(tmp_path / "again")).keys()
    assert 0 < len(kept) < len(expected.rows)
    assert kept <= expected.rows.keys()
    assert [left.reason.value for left in again.left_out][:2] == ["not_within", "outside_split"]
    with pytest.raises(
        ConfigError, match=r"images.parquet: names no kept sentence of this dataset .its first stem is 'a'"
    ):
        select(data.folder, tmp_path / "again", within=(str(tmp_path / "images.parquet"),))
    select(data.folder, tmp_path / "rest", without=(str(tmp_path / "s"),))
    assert not dict(rows_of(tmp_path / "rest")).keys() & expected.rows.keys()


def test_unfinished_files_are_named_or_left_out_and_others_are_refused(data: Data, tmp_path: Path) -> None:
    copy = shutil.copytree(data.folder, tmp_path / "copy")
    of_news = copy / "corpora/news/embeddings/t"
    shutil.move(of_news / "x/01.parquet", tmp_path / "01.parquet")
    with pytest.raises(
        ConfigError, match=r"1 of 3 shards .*news/x/01 has no corpora/news/embeddings/t\).*--missing skip"
    ):
        select(copy, tmp_path / "s")
    outcome = select(copy, tmp_path / "s", missing="skip")
    assert outcome.left_out[0].reason == "missing_signal"
    assert outcome.left_out[0].count == 60
    shutil.copy(of_news / "00.parquet", of_news / "x/01.parquet")
    with pytest.raises(FormatError, match=r"x/01.parquet: its stem is corpora/news/00, not corpora/news/x/01"):
        select(copy, tmp_path / "s")
    # The rows of another reading of the same file: one sentence fewer.
    shutil.copy(tmp_path / "01.parquet", of_news / "x/01.parquet")
    spine = copy / "corpora/news/sentences/x/01.parquet"
    table = pq.read_table(spine)
    pq.write_table(table.slice(0, 60), spine)
    with pytest.raises(FormatError, match=r"x/01.parquet"):
        select(copy, tmp_path / "s")


MISTAKES: list[tuple[list[str], str]] = [
    (["--corpus", "news"], "--corpus: needs --nearest"),
    (["--corpus", "news", "--nearest", "0"], "--nearest 0: sentences an image, from 1 to 1,000"),
    (["--corpus", "news", "--corpus", "news", "--nearest", "1"], "--corpus news: given twice"),
    (["--corpus", "books", "--nearest", "1"], "has no corpus 'books'; it has captions, news"),
    (["--corpus", "news", "--nearest", "1", "--keep", "0"], "--keep 0: at least 1"),
    (["--corpus", "news", "--nearest", "1", "--teacher", "big"], "--teacher big: needs a teacher that has embedded"),
    (
        ["--corpus", "news", "--nearest", "1", "--teacher", "t", "--teacher", "u"],
        "--teacher u: images and sentences meet",
    ),
    (
        ["--corpus", "news", "--nearest", "1", "--keep-top", "0.5"],
        "--keep-top 0.5: not of sentences: not with --corpus",
    ),
    (["--corpus", "news", "--nearest", "1", "--union", "s.parquet"], "--union s.parquet: not of sentences"),
    (["--corpus", "news", "--nearest", "1", "--bank", "cars"], "--bank cars: not of sentences"),
    (["--nearest", "1"], "--nearest 1: goes with --corpus"),
    (["--dedup", "0.9", "--max-per-image", "1"], "--max-per-image 1: goes with --corpus"),
    (
        ["--corpus", "news", "--nearest", "1", "--min-score", "1"],
        "none of 360 sentences is left for 1,139 images (1 without",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=lambda value: " ".join(value)[:40])
def test_mistakes_are_one_line(data: Data, tmp_path: Path, arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["select", str(data.folder), "--output", str(tmp_path / "s"), *arguments])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr
    assert message in result.stderr
    assert not (tmp_path / "s").exists()


def test_sentences_of_other_weights_are_of_another_space(data: Data, tmp_path: Path) -> None:
    copy = shutil.copytree(data.folder, tmp_path / "copy")
    write_corpus(copy, "other", {"0": ["one"]}, {"t": {"0": unit(1, 7)}}, weights_sha256="1" * 64)
    with pytest.raises(ConfigError, match="--corpus other: t is of other weights there than for images"):
        select(copy, tmp_path / "s", corpora=("other",))


def test_what_a_person_sees(data: Data, tmp_path: Path) -> None:
    arguments = ["--corpus", "news", "--corpus", "captions", "--nearest", "3", "--dedup", "0.97", "--keep", "100"]
    command = ["select", str(data.folder), "--output", str(tmp_path / "s"), *arguments]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.stderr
    outcome = select(data.folder, tmp_path / "s", dedup=0.97, keep=100)
    assert shown.stdout == describe_sentences(outcome) + "\n"
    assert "kept 100 of 1,560 sentences (6.4 %)" in shown.stdout
    assert (
        "met 1,139 of 1,140 images, as t sees them\n          1  without a clean view  sub/b/00000047" in shown.stdout
    )
    assert f"of these, {outcome.num_images_covered:,} have one of their nearest sentences" in shown.stdout
    figures = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert figures == json.loads(json.dumps(outcome.to_json()))


def test_in_a_bucket_it_is_the_same_file(
    data: Data, tmp_path: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_test_credentials(monkeypatch, server.endpoint)
    bucket = server.make_bucket("sentences")
    for path in data.folder.rglob("*.*"):
        server.client().upload_file(str(path), bucket, f"out/{path.relative_to(data.folder)}")
    criteria = SentenceCriteria(corpora=("news",), nearest=2)
    select_sentences(open_dataset(f"s3://{bucket}/out"), f"s3://{bucket}/s.parquet", criteria)
    select(data.folder, tmp_path / "s", corpora=("news",), nearest=2)
    assert open_store(f"s3://{bucket}").read("s.parquet") == (tmp_path / "s").read_bytes()
