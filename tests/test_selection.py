"""Selections as files, and what is asked of names alone: splits and other selections."""

import hashlib
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reinforce import open_dataset
from reinforce.config import ConfigError
from reinforce.selection import Criteria, Outcome, read_selection, select_samples
from reinforce.selection.criteria import parse_split
from reinforce.selection.membership import is_between
from tests.fakes import fake_plan, run
from tests.tars import pairs, write_tar

NUM_SAMPLES = 60
GOLDEN = str(Path(__file__).parent / "golden" / "dataset")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Spines of two shards that share half of their keys; one image of the first does not decode."""
    folder = tmp_path_factory.mktemp("split")
    members = [(name, b"junk" if name == "00003.png" else data) for name, data in pairs(NUM_SAMPLES)]
    write_tar(folder / "in" / "a.tar", members)
    write_tar(folder / "in" / "b.tar", pairs(NUM_SAMPLES, start=NUM_SAMPLES // 2))
    run(fake_plan(captioners=[]), folder / "in", folder / "out")
    return str(folder / "out")


def select(dataset: str, output: Path, **asked: Any) -> Outcome:
    return select_samples(open_dataset(dataset), str(output), Criteria(**asked))


def chosen(path: Path) -> set[tuple[str, str]]:
    found = read_selection(str(path))
    return {(stem, key) for stem in found.stems for key in found.keys(stem)}


def test_splits_that_touch_share_nothing_and_leave_nothing_out(dataset: str, tmp_path: Path) -> None:
    bounds = [0, 0.1, 0.5, 0.9, 1]
    parts = []
    for low, high in pairwise(bounds):
        num_samples = select(dataset, tmp_path / "part", split=(low, high)).num_kept
        parts.append(chosen(tmp_path / "part"))
        assert num_samples == len(parts[-1])
        assert abs(num_samples / (2 * NUM_SAMPLES) - (high - low)) < 0.15
    kept = {
        (stem, row["key"])
        for stem in ("a", "b")
        for row in open_dataset(dataset).spine(stem).to_pylist()
        if row["drop_reason"] is None
    }
    assert sum(map(len, parts)) == len(kept) == 2 * NUM_SAMPLES - 1
    assert set.union(*parts) == kept
    # A key that is in both shards is on one side.
    sides = [{key for _, key in part} for part in parts]
    assert sum(map(len, sides)) == len(set.union(*sides))


def test_a_split_is_a_function_of_the_key(dataset: str, tmp_path: Path) -> None:
    select(dataset, tmp_path / "part", split=(0.25, 0.75))
    for stem in ("a", "b"):
        for row in open_dataset(dataset).spine(stem).to_pylist():
            share = int.from_bytes(hashlib.blake2b(row["key"].encode(), digest_size=8).digest(), "little") / 2**64
            expected = 0.25 <= share < 0.75 and row["drop_reason"] is None
            assert ((stem, row["key"]) in chosen(tmp_path / "part")) == expected
    first, pairs_of_first = (tmp_path / "part").read_bytes(), chosen(tmp_path / "part")
    select(dataset, tmp_path / "part", split=(0.25, 0.75), seed=1)
    assert chosen(tmp_path / "part") != pairs_of_first
    select(dataset, tmp_path / "part", split=(0.25, 0.75))
    assert (tmp_path / "part").read_bytes() == first


def test_the_largest_hash_is_in_the_last_split(monkeypatch: pytest.MonkeyPatch) -> None:
    class Largest:
        def digest(self) -> bytes:
            return b"\xff" * 8

    monkeypatch.setattr(hashlib, "blake2b", lambda data, digest_size: Largest())
    assert [is_between("key", "", *bounds) for bounds in ((0, 0.9), (0.9, 1))] == [False, True]


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    output = tmp_path / "part"
    for low, high in ((0.5, 0.5), (0.9, 0.1), (-0.1, 1), (0, 1.1), (float("nan"), 1)):
        with pytest.raises(ConfigError, match="must satisfy 0 <= LOW < HIGH <= 1"):
            Criteria(split=(low, high))
    with pytest.raises(ConfigError, match=r"none of the 6 samples is left \(6 outside --split 0:1e-09\)"):
        select(GOLDEN, output, split=(0, 1e-9))
    assert not output.exists()
    assert parse_split("0:0.9") == (0, 0.9)
    for text in ("0.9", "a:b", "0.5:", "0:1:2"):
        with pytest.raises(ConfigError, match="give LOW:HIGH"):
            parse_split(text)


def test_other_selections_narrow_and_add(dataset: str, tmp_path: Path) -> None:
    """Within two, without one, and one added: as sets of pairs, in the order of the dataset."""
    paths = {name: str(tmp_path / name) for name in ("wide", "other", "away", "more")}
    bounds = {"wide": (0, 0.8), "other": (0.2, 1), "away": (0.5, 0.6), "more": (0.85, 0.95)}
    sets = {}
    for name, split in bounds.items():
        select(dataset, Path(paths[name]), split=split)
        sets[name] = chosen(Path(paths[name]))
    outcome = select(
        dataset,
        tmp_path / "out",
        within=(paths["wide"], paths["other"]),
        without=(paths["away"],),
        union=(paths["more"],),
    )
    expected = ((sets["wide"] & sets["other"]) - sets["away"]) | sets["more"]
    assert chosen(tmp_path / "out") == expected
    assert (outcome.num_kept, outcome.num_added) == (len(expected), len(sets["more"]))
    # What was added is no longer counted as left out.
    assert sum(left.count for left in outcome.left_out) == outcome.num_samples - outcome.num_kept
    rows = pq.read_table(tmp_path / "out").to_pylist()
    spine = [(stem, key) for stem in ("a", "b") for key in open_dataset(dataset).spine(stem).column("key").to_pylist()]
    assert [(row["stem"], row["key"]) for row in rows] == [pair for pair in spine if pair in expected]


def test_pairs_that_are_not_here_are_counted_or_refused(dataset: str, tmp_path: Path) -> None:
    write_pairs(tmp_path / "some", [("a", "00000"), ("a", "00003"), ("z", "00001")])
    outcome = select(dataset, tmp_path / "out", within=(str(tmp_path / "some"),))
    # One is of a shard that is not there, one is a sample that was dropped.
    assert (outcome.num_kept, outcome.num_not_here) == (1, {f"--within {tmp_path / 'some'}": 2})
    added = select(dataset, tmp_path / "out", split=(0, 0.5), union=(str(tmp_path / "some"),))
    assert added.num_not_here == {f"--union {tmp_path / 'some'}": 2}
    write_pairs(tmp_path / "none", [("scenes", "plain")])
    for option in ("within", "without", "union"):
        with pytest.raises(ConfigError, match=rf"--{option} .*none: names no kept sample of this dataset .*'scenes'"):
            select(dataset, tmp_path / "out", **{option: (str(tmp_path / "none"),)})
    with pytest.raises(ConfigError, match=r"--union .*nowhere: no such file"):
        select(dataset, tmp_path / "out", split=(0, 1), union=(str(tmp_path / "nowhere"),))


def test_the_file_says_what_made_it_and_holds_no_path(dataset: str, tmp_path: Path) -> None:
    select(dataset, tmp_path / "here", split=(0, 0.5))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "same").write_bytes((tmp_path / "here").read_bytes())
    select(dataset, tmp_path / "one", within=(str(tmp_path / "here"),))
    select(dataset, tmp_path / "two", within=(str(tmp_path / "elsewhere" / "same"),))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    schema = pq.read_schema(tmp_path / "one")
    assert schema.names == ["stem", "key", "weight", "label", "score", "confidence"]
    footer = json.loads(schema.metadata[b"reinforce"])
    assert footer["criteria"] == {"within": [read_selection(str(tmp_path / "here")).sha256]}
    assert footer["spine_fingerprint"] == open_dataset(dataset).document["spine_fingerprint"]
    assert footer["num_kept"] + footer["left_out"]["not_within"] == footer["num_samples"] == 2 * NUM_SAMPLES - 1


def test_readers_look_at_the_pairs_alone(dataset: str, tmp_path: Path) -> None:
    select(dataset, tmp_path / "whole", split=(0, 0.5))
    table = pq.read_table(tmp_path / "whole")
    pq.write_table(table.select(["key", "stem"]), tmp_path / "bare")
    assert read_selection(str(tmp_path / "bare")).sha256 == read_selection(str(tmp_path / "whole")).sha256


def write_pairs(path: Path, rows: list[tuple[str, str]]) -> None:
    pq.write_table(pa.table({"stem": [stem for stem, _ in rows], "key": [key for _, key in rows]}), path)
