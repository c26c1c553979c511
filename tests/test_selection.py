"""Splits of a dataset: by key alone, disjoint, complete, and readable as a selection."""

import hashlib
from itertools import pairwise
from pathlib import Path

import pytest

from reinforce import open_dataset, selection
from reinforce.config import ConfigError
from reinforce.selection import parse_split, read_selection, select_split
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


def chosen(path: Path) -> set[tuple[str, str]]:
    found = read_selection(str(path))
    return {(stem, key) for stem in found.stems for key in found.keys(stem)}


def test_splits_that_touch_share_nothing_and_leave_nothing_out(dataset: str, tmp_path: Path) -> None:
    bounds = [0, 0.1, 0.5, 0.9, 1]
    parts = []
    for low, high in pairwise(bounds):
        num_samples = select_split(dataset, str(tmp_path / "part"), low, high)
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
    select_split(dataset, str(tmp_path / "part"), 0.25, 0.75)
    for stem in ("a", "b"):
        for row in open_dataset(dataset).spine(stem).to_pylist():
            share = int.from_bytes(hashlib.blake2b(row["key"].encode(), digest_size=8).digest(), "little") / 2**64
            expected = 0.25 <= share < 0.75 and row["drop_reason"] is None
            assert ((stem, row["key"]) in chosen(tmp_path / "part")) == expected
    first = (tmp_path / "part").read_bytes()
    select_split(dataset, str(tmp_path / "part"), 0.25, 0.75, salt="another")
    assert (tmp_path / "part").read_bytes() != first
    select_split(dataset, str(tmp_path / "part"), 0.25, 0.75)
    assert (tmp_path / "part").read_bytes() == first


def test_the_largest_hash_is_in_the_last_split(monkeypatch: pytest.MonkeyPatch) -> None:
    class Largest:
        def digest(self) -> bytes:
            return b"\xff" * 8

    monkeypatch.setattr(hashlib, "blake2b", lambda data, digest_size: Largest())
    assert [selection._is_between("key", "", *bounds) for bounds in ((0, 0.9), (0.9, 1))] == [False, True]


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    output = tmp_path / "part"
    for low, high in ((0.5, 0.5), (0.9, 0.1), (-0.1, 1), (0, 1.1), (float("nan"), 1)):
        with pytest.raises(ConfigError, match="must satisfy 0 <= LOW < HIGH <= 1"):
            select_split(GOLDEN, str(output), low, high)
    with pytest.raises(ConfigError, match="none of the 6 kept samples"):
        select_split(GOLDEN, str(output), 0, 1e-9)
    assert not output.exists()
    assert parse_split("0:0.9") == (0, 0.9)
    for text in ("0.9", "a:b", "0.5:", "0:1:2"):
        with pytest.raises(ConfigError, match="give LOW:HIGH"):
            parse_split(text)
