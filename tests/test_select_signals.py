"""Selections by what teachers said: scores, labels, near-duplicates, against the same by hand; and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from reinforce import open_dataset
from reinforce.cli import app
from reinforce.config import ConfigError
from reinforce.selection import Criteria, Outcome, read_selection, select_samples
from reinforce.selection.outcome import describe, printable
from reinforce.shards.banks import Bank, read_bank
from reinforce.shards.reader import FormatError
from reinforce.storage import open_store
from tests.fakes import fake_plan, run
from tests.s3_server import S3Server, use_test_credentials
from tests.tars import image_bytes, write_tar

NUM_SAMPLES = 20
STEMS = ("a", "b", "sub/c")
TWINS = {("b", "x3"): ("a", "x3"), ("sub/c", "x4"): ("a", "x4"), ("sub/c", "x3"): ("a", "x3")}
"""Samples with the very image of another, which comes before them."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards: images of one shard that come again in another, samples without a caption, one with two."""
    folder = tmp_path_factory.mktemp("select")
    for number, stem in enumerate(STEMS):
        members = []
        for index in range(NUM_SAMPLES):
            key = f"x{index}"
            drawn = index if (stem, key) in TWINS else index + 100 * number
            members.append((f"{key}.png", image_bytes(drawn)))
            if index % 6 != 5:
                captions = [f"{'word ' * (index % 4)}{stem} {index}", "another"][: 1 + (index == 2)]
                members.append((f"{key}.json", json.dumps({"captions": captions}).encode()))
        write_tar(folder / "in" / f"{stem}.tar", members)
    source = {"captions": ["json.captions"], "max_captions": 2}
    # Two spellings of one label: as two rows they would share the mass that it has.
    banks = {"words": {"labels": ["word", "another 7", "Word", "sub"], "templates": ["{}", "the {}"]}}
    run(fake_plan({"source": source, "banks": banks}), folder / "in", folder / "out")
    return folder / "out"


def select(dataset: Path, output: Path, *, bank: Bank | None = None, **asked: Any) -> Outcome:
    return select_samples(open_dataset(str(dataset)), str(output), Criteria(**asked), bank=bank)


def bank_of(labels: tuple[str, ...], embeddings: np.ndarray, logit_scale: float) -> Bank:
    """A bank of the teacher `large`."""
    return Bank("", "large", labels, ("{}",), embeddings, logit_scale, None, "0" * 64, "1" * 64)


def rows_of(output: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["stem"], row["key"]): row for row in pq.read_table(output).to_pylist()}


def matrix(dataset: Path, signal: str, column: str) -> np.ndarray:
    """A column of all shards."""
    opened = open_dataset(str(dataset))
    return np.concatenate([opened.numpy(signal, stem, column).astype(np.float32) for stem in STEMS])


def names() -> list[tuple[str, str]]:
    return [(stem, f"x{index}") for stem in STEMS for index in range(NUM_SAMPLES)]


def score(dataset: Path, teacher: str, sources: list[str]) -> np.ndarray:
    views = matrix(dataset, f"embeddings/{teacher}/image", "view_000")
    columns = [(source, f"caption_{index:03d}") for source in sources for index in range(2)]
    cosines = [(views * matrix(dataset, f"embeddings/{teacher}/text/{s}", column)).sum(1) for s, column in columns]
    return np.asarray(np.where(np.isnan(cosines).all(0), np.nan, np.nanmax(np.nan_to_num(cosines, nan=-2), axis=0)))


@pytest.mark.parametrize(
    ("asked", "sources"), [("original", ["original"]), ("synthetic", ["fake"]), ("best", ["original", "fake"])]
)
def test_scores_are_cosines_of_the_clean_view_and_the_best_caption(
    dataset: Path, tmp_path: Path, asked: str, sources: list[str]
) -> None:
    expected = score(dataset, "small", sources)
    bound = float(np.nanmedian(expected)) + 1e-4
    outcome = select(dataset, tmp_path / "s", score=asked, min_score=bound, teachers=("small",))
    rows = rows_of(tmp_path / "s")
    assert set(rows) == {name for name, value in zip(names(), expected, strict=True) if value >= bound}
    for name, value in zip(names(), expected, strict=True):
        if name in rows:
            assert rows[name]["score"] == pytest.approx(value, abs=1e-6)
    counts = {left.reason.value: left.count for left in outcome.left_out}
    assert counts.get("no_score", 0) == np.isnan(expected).sum() == (9 if asked == "original" else 0)
    low = next(left for left in outcome.left_out if left.reason == "below_min_score")
    values = [example.value for example in low.examples]
    assert [value or 0 for value in values] == sorted(value or 0 for value in values)
    assert values[0] == pytest.approx(np.nanmin(expected), abs=1e-6)


def test_teachers_are_averaged_and_the_top_is_a_share_of_all(dataset: Path, tmp_path: Path) -> None:
    select(dataset, tmp_path / "s", keep_top=0.4)
    expected = (score(dataset, "large", ["original"]) + score(dataset, "small", ["original"])) / 2
    best = np.argsort(-np.nan_to_num(expected, nan=-2), kind="stable")[: round(0.4 * len(expected))]
    assert set(rows_of(tmp_path / "s")) == {names()[index] for index in best}


def test_of_twins_one_stays(dataset: Path, tmp_path: Path) -> None:
    outcome = select(dataset, tmp_path / "first", dedup=0.999999)
    (left,) = outcome.left_out
    assert {(e.stem, e.key): e.kept_instead for e in left.examples} == TWINS
    assert [e.value for e in left.examples] == pytest.approx([1, 1, 1])
    assert (outcome.largest_group, outcome.num_kept) == (3, len(names()) - 3)
    # With scores it is the one with the highest.
    scores = dict(zip(names(), score(dataset, "large", ["original"]), strict=True))
    select(dataset, tmp_path / "best", dedup=0.999999, score="original", teachers=("large",))
    kept = set(rows_of(tmp_path / "best"))
    trio = [("a", "x3"), ("b", "x3"), ("sub/c", "x3")]
    assert [name in kept for name in trio] == [name == max(trio, key=lambda n: scores[n]) for name in trio]
    assert set(rows_of(tmp_path / "first")) != kept


def test_labels_are_the_nearest_class_and_the_surest_are_kept(dataset: Path, tmp_path: Path) -> None:
    views = matrix(dataset, "embeddings/large/image", "view_000")
    rows = np.stack([views[7], views[25], -views[0]])
    classes = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    bank = bank_of(("seven", "twenty-five", "none"), classes, 20.0)
    logits = 20 * views @ classes.T
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    select(dataset, tmp_path / "all", bank=bank)
    labels = {name: row["label"] for name, row in rows_of(tmp_path / "all").items()}
    assert labels == dict(zip(names(), [bank.labels[i] for i in logits.argmax(1)], strict=True))
    surest = np.argsort(-probabilities.max(1), kind="stable")[:15]
    for asked in ({"keep_confident": 0.25}, {"keep_top": 0.25}):
        outcome = select(dataset, tmp_path / "surest", bank=bank, **asked)
        assert set(rows_of(tmp_path / "surest")) == {names()[index] for index in surest}
        assert sum(outcome.labels.values()) == 15
    for scored in ({"score": "original"}, {"min_score": -1}):
        assert select(dataset, tmp_path / "top", bank=bank, keep_top=0.25, **scored).left_out[-1].reason == "not_in_top"


@pytest.mark.parametrize("option", ["--keep-confident", "--keep-top"])
def test_a_bank_of_the_dataset_gives_labels(dataset: Path, tmp_path: Path, option: str) -> None:
    options = ["--bank", "words", "--teacher", "small", option, "0.5"]
    result = CliRunner().invoke(app, ["select", str(dataset), "--output", str(tmp_path / "s"), *options])
    assert result.exit_code == 0, result.stderr
    bank = read_bank(str(dataset / "banks" / "words"), "small")
    assert bank.labels == ("word", "another 7", "sub")
    logits = 10 * matrix(dataset, "embeddings/small/image", "view_000") @ bank.embeddings.T
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    surest = np.argsort(-probabilities.max(1), kind="stable")[:30]
    expected = {names()[index]: bank.labels[logits[index].argmax()] for index in surest}
    rows = rows_of(tmp_path / "s")
    assert {name: row["label"] for name, row in rows.items()} == expected
    # The recipe names "word" twice: with that label twice in the softmax its samples would have half the confidence.
    confidences = {names()[index]: probabilities[index].max() for index in surest}
    assert {name: row["confidence"] for name, row in rows.items()} == pytest.approx(confidences, abs=1e-5)
    footer = json.loads(pq.read_schema(tmp_path / "s").metadata[b"reinforce"])
    assert footer["classes"] == bank.fingerprint
    assert footer["criteria"] == {"teachers": ["small"], "keep_confident": 0.5}


def test_the_surest_of_samples_whose_confidence_is_one(dataset: Path, tmp_path: Path) -> None:
    """At a scale of thousands every softmax is 1 in float32: what counts is by how far."""
    views = matrix(dataset, "embeddings/large/image", "view_000")
    classes = np.stack([views[7], -views[7]]) / np.linalg.norm(views[7])
    bank = bank_of(("like", "unlike"), classes, 5000.0)
    select(dataset, tmp_path / "surest", bank=bank, keep_confident=0.1)
    surest = np.argsort(-np.abs(views @ classes[0]), kind="stable")[:6]
    assert set(rows_of(tmp_path / "surest")) == {names()[index] for index in surest}


def test_a_criterion_looks_at_what_those_before_it_left(dataset: Path, tmp_path: Path) -> None:
    """The top of a half is half of the half; a twin whose other is left out before stays."""
    half = select(dataset, tmp_path / "half", split=(0, 0.5)).num_kept
    outcome = select(dataset, tmp_path / "top", split=(0, 0.5), score="synthetic", keep_top=0.5)
    assert abs(outcome.num_kept - half / 2) <= 0.5
    assert [left.reason for left in outcome.left_out] == ["outside_split", "not_in_top"]
    select(dataset, tmp_path / "first", dedup=0.999999)
    select(dataset, tmp_path / "rest", without=(str(tmp_path / "first"),), dedup=0.999999)
    assert set(rows_of(tmp_path / "rest")) == {("b", "x3"), ("sub/c", "x4")}


def copy_of(dataset: Path, folder: Path) -> Path:
    for path in dataset.rglob("*"):
        if path.is_file():
            target = folder / path.relative_to(dataset)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return folder


def test_unfinished_shards_are_named_or_left_out(dataset: Path, tmp_path: Path) -> None:
    copy = copy_of(dataset, tmp_path / "copy")
    (copy / "embeddings/large/text/original/b.parquet").unlink()
    select(copy, tmp_path / "s", dedup=0.9999)  # looks at no caption
    with pytest.raises(ConfigError, match=r"1 of 3 shards .*\(b has no .*large/text/original\).*--missing skip"):
        select(copy, tmp_path / "s", min_score=-1)
    outcome = select(copy, tmp_path / "s", min_score=-1, missing="skip")
    assert {left.reason: left.count for left in outcome.left_out} == {"missing_signal": NUM_SAMPLES, "no_score": 6}
    assert {stem for stem, _ in rows_of(tmp_path / "s")} == {"a", "sub/c"}


def test_rows_of_another_shard_are_refused(dataset: Path, tmp_path: Path) -> None:
    copy = copy_of(dataset, tmp_path / "copy")
    image = copy / "embeddings/large/image"
    (image / "a.parquet").write_bytes((image / "b.parquet").read_bytes())
    with pytest.raises(FormatError, match=r"large/image/a.parquet: its stem is b, not a"):
        select(copy, tmp_path / "s", dedup=0.9)


def test_embed_cheaply_select_then_pay_for_the_rest(dataset: Path, tmp_path: Path) -> None:
    """What is selected with one dataset narrows the build of another, and the reading of the first."""
    select(dataset, tmp_path / "s", min_score=0, dedup=0.9999, teachers=("small",))
    selection = read_selection(str(tmp_path / "s"))
    plan = fake_plan({"source": {"captions": ["json.captions"], "max_captions": 2}}, selection=selection)
    run(plan, dataset.parent / "in", tmp_path / "second")
    second = open_dataset(str(tmp_path / "second"))
    kept = {
        (stem, row["key"])
        for stem in second.stems
        for row in second.spine(stem).to_pylist()
        if row["drop_reason"] is None
    }
    assert kept == set(rows_of(tmp_path / "s"))
    assert second.document["spine"]["selection_sha256"] == selection.sha256
    # Selecting again within the second dataset starts from what is in it.
    assert select(tmp_path / "second", tmp_path / "again", dedup=0.9999).num_samples == len(kept)


MISTAKES: list[tuple[list[str], str]] = [
    ([], "nothing is asked"),
    (["--min-score", "1.5"], "--min-score 1.5: a cosine"),
    (["--keep-top", "0"], "--keep-top 0: a share"),
    (["--dedup", "nan"], "--dedup nan: a cosine above 0"),
    (["--score", "both"], "--score both: one of original"),
    (["--seed", "3", "--dedup", "0.9"], "--seed 3: goes with --split"),
    (["--keep-confident", "0.2"], "--keep-confident: goes with --bank or --labels"),
    (["--bank", "words", "--keep-top", "0.2", "--keep-confident", "0.2"], "without --score both are of the labels"),
    (["--teacher", "huge", "--dedup", "0.9"], "--teacher huge: the dataset has no such teacher; it has large, small"),
    (["--teacher", "large", "--teacher", "large", "--dedup", "0.9"], "--teacher large: given twice"),
    (["--min-score", "0.999"], "none of the 60 samples is left (9 without a score, 51 score below 0.999)"),
    (["--bank", "cars"], "--bank cars: the dataset has no such bank; it has words"),
    (["--bank", "words", "--labels", "nowhere.txt"], "--bank, --labels: give one of the two"),
    (["--bank", "words", "--templates", "openai"], "--templates: goes with --labels"),
    (["--labels", "nowhere.txt"], "--labels nowhere.txt: no such file"),
    (["--labels", __file__], "teacher large: its signal.json does not say how to load it"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=lambda value: " ".join(value)[:30])
def test_mistakes_are_one_line(dataset: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    labels = [str(tmp_path / "labels") if part == __file__ else part for part in arguments]
    (tmp_path / "labels").write_text("cat\ndog\n")
    result = CliRunner().invoke(app, ["select", str(dataset), "--output", str(tmp_path / "s"), *labels])
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "s").exists()


def test_captions_that_no_teacher_has_embedded(dataset: Path, tmp_path: Path) -> None:
    copy = copy_of(dataset, tmp_path / "copy")
    for path in (copy / "embeddings/small/text/fake").rglob("*.*"):
        path.unlink()
    with pytest.raises(ConfigError, match=r"--score synthetic: teacher small has embedded no such .* it has: original"):
        select(copy, tmp_path / "s", score="synthetic", keep_top=0.5)


def test_what_a_person_sees(dataset: Path, tmp_path: Path) -> None:
    arguments = ["select", str(dataset), "--output", str(tmp_path / "s"), "--min-score", "0", "--dedup", "0.999999"]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.stderr
    assert f"kept {len(rows_of(tmp_path / 's'))} of 60 samples" in shown.stdout
    assert "9  without a score  " in " ".join(shown.stdout.split(" "))
    assert " is like a/x" in shown.stdout
    figures = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    outcome = select(dataset, tmp_path / "s", min_score=0, dedup=0.999999)
    assert figures == json.loads(json.dumps(outcome.to_json()))
    assert describe(outcome) + "\n" == shown.stdout
    assert printable("a\x1b[31m木\n") == "a\\x1b[31m木\\n"


def test_in_a_bucket_it_is_the_same_file(
    dataset: Path, tmp_path: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_test_credentials(monkeypatch, server.endpoint)
    bucket = server.make_bucket("selections")
    select(dataset, tmp_path / "half", split=(0, 0.5))
    for path in dataset.rglob("*.*"):
        server.client().upload_file(str(path), bucket, f"out/{path.relative_to(dataset)}")
    server.client().upload_file(str(tmp_path / "half"), bucket, "half.parquet")
    uri = f"s3://{bucket}"
    criteria = Criteria(within=(f"{uri}/half.parquet",), score="best", dedup=0.999999)
    select_samples(open_dataset(f"{uri}/out"), f"{uri}/s.parquet", criteria)
    select(dataset, tmp_path / "s", within=(str(tmp_path / "half"),), score="best", dedup=0.999999)
    assert open_store(uri).read("s.parquet") == (tmp_path / "s").read_bytes()
    assert len(read_selection(f"{uri}/s.parquet")) == len(rows_of(tmp_path / "s"))
