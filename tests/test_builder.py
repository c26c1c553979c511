"""One shard at a time, row by row against an independent recomputation: the defects of the prior art, as tests."""

import errno
import fcntl
import io
import json
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from jaxtyping import UInt8
from rich.console import Console

import reinforce
from reinforce.captioners import FakeCaptioner, load_captioner
from reinforce.config import CaptionerConfig, ConfigError, ViewPolicy
from reinforce.decode import decode
from reinforce.plan import BuildPlan
from reinforce.prefetch import SAMPLES_A_WORKER, missing_of
from reinforce.runners import run_local
from reinforce.sample import Embeddings
from reinforce.selection import read_selection
from reinforce.shard_report import stored_report
from reinforce.shards.dataset import DatasetMismatchError
from reinforce.shards.schema import round_mantissa
from reinforce.storage import StorageError, find_shards, open_store
from reinforce.teachers import FakeTeacher, TokenizedText
from reinforce.views.draw import draw, view_seed
from reinforce.views.render import render
from tests.fakes import fake_plan, fake_teachers, files_of, run
from tests.tars import image_bytes, pairs, write_tar

CORRUPT = image_bytes(0)[:-80]


def check_every_cell(dataset_folder: Path, stem: str, images: dict[str, bytes], captions: dict[str, str]) -> None:
    """Recomputes every stored cell from the source image alone, with nothing of the builder."""
    dataset = reinforce.open_dataset(str(dataset_folder))
    policy = ViewPolicy.model_validate(dataset.document["view_policy"])
    spine = [row for row in dataset.spine(stem).to_pylist() if row["drop_reason"] is None]
    assert [row["key"] for row in spine] == list(images)
    for teacher in fake_teachers():
        for column in ("view_000", "view_001", "view_002"):
            stored = dataset.numpy(f"embeddings/{teacher.name}/image", stem, column)
            assert len(stored) == len(spine)
            for row, embedding in zip(spine, stored, strict=True):
                image = decode(images[row["key"]], 10**8)
                assert isinstance(image, np.ndarray)
                assert (row["image_height"], row["image_width"]) == image.shape[:2]
                view = draw(policy, row["view_seed"], int(column[-3:]), row["image_width"], row["image_height"])
                pixels = render(image, view, teacher.image_size)
                expected = round_mantissa(teacher.embed_images(pixels[None]), teacher.mantissa_bits)[0]
                np.testing.assert_array_equal(embedding, expected, err_msg=f"{row['key']} {column}")
        texts = dataset.numpy(f"embeddings/{teacher.name}/text/original", stem, "caption_000")
        for row, embedding in zip(spine, texts, strict=True):
            caption = captions.get(row["key"])
            if caption is None:
                assert np.isnan(embedding).all()
            else:
                expected = round_mantissa(teacher.embed_texts([caption])[0], teacher.mantissa_bits)[0]
                np.testing.assert_array_equal(embedding, expected)


@pytest.mark.parametrize("num_samples", [1, 3, 4, 13])
def test_every_row_of_every_batch(tmp_path: Path, num_samples: int) -> None:
    """Batches are of 4: a shard shorter than one, of just one, and longer than three but no multiple."""
    write_tar(tmp_path / "in" / "s.tar", pairs(num_samples))
    run(fake_plan(), tmp_path / "in", tmp_path / "out")
    images = {f"{i:05d}": image_bytes(i) for i in range(num_samples)}
    check_every_cell(tmp_path / "out", "s", images, {f"{i:05d}": f"caption of picture {i}" for i in range(num_samples)})


def test_bad_samples_cost_no_neighbour(tmp_path: Path) -> None:
    members = dict(pairs(11))
    members["00002.png"] = CORRUPT
    members["00005.txt"] = b"\xff\xfe"
    members["00006.png"] = b""
    del members["00008.png"], members["00009.txt"]
    write_tar(tmp_path / "in" / "s.tar", list(members.items()))
    summary = run(fake_plan(), tmp_path / "in", tmp_path / "out")
    good = [i for i in range(11) if i not in (2, 6, 8)]
    images = {f"{i:05d}": image_bytes(i) for i in good}
    captions = {f"{i:05d}": f"caption of picture {i}" for i in good if i not in (5, 9)}
    check_every_cell(tmp_path / "out", "s", images, captions)
    assert dict(summary.done.drops) == {"corrupt_image": 1, "empty_image": 1, "missing_image": 1}
    assert dict(summary.done.counts) == {"captions_undecodable": 1}
    # Two samples without a caption, five caption columns of eight rows, two teachers.
    assert summary.done.nulls["no_caption"] == 2 * (8 * 5 - 6)
    # Whoever finds the shard complete counts the same from its files.
    stored = stored_report(open_store(str(tmp_path / "out")), "s", fake_plan().signals)
    for figure in ("num_samples", "num_kept", "drops", "nulls", "counts"):
        assert getattr(stored, figure) == getattr(summary.done, figure), figure


def test_a_shard_of_bad_images_only(tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "s.tar", [(f"{i}.jpg", CORRUPT) for i in range(6)])
    summary = run(fake_plan(), tmp_path / "in", tmp_path / "out")
    dataset = reinforce.open_dataset(str(tmp_path / "out"))
    assert (summary.failed, summary.done.num_kept, summary.done.drops["corrupt_image"]) == ({}, 0, 6)
    assert dataset.numpy("embeddings/large/image", "s", "view_000").shape == (0, 12)
    assert dataset.read("s", ["captions/fake"]).num_rows == 0
    assert run(fake_plan(), tmp_path / "in", tmp_path / "out").done.num_samples == 0


def test_view_seeds_and_synthetic_captions_follow_the_key(tmp_path: Path) -> None:
    """The same sample elsewhere in another shard gets the same views and captions."""
    write_tar(tmp_path / "in" / "a" / "1.tar", pairs(9))
    write_tar(tmp_path / "in" / "b.tar", [*pairs(3, start=40), *pairs(1, start=6)])
    run(fake_plan(), tmp_path / "in", tmp_path / "out")
    dataset = reinforce.open_dataset(str(tmp_path / "out"))
    assert dataset.stems == ["a/1", "b"]
    signals = ["captions/fake", "embeddings/small/image", "embeddings/large/text/fake"]
    assert dataset.read("a/1", signals).to_pylist()[6] == dataset.read("b", signals).to_pylist()[3]
    assert dataset.spine("b").column("view_seed")[3].as_py() == view_seed(0, "00006")


def test_original_and_synthetic_captions_stay_apart(tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "s.tar", pairs(5))
    run(fake_plan(), tmp_path / "in", tmp_path / "out")
    dataset = reinforce.open_dataset(str(tmp_path / "out"))
    teacher = fake_teachers()[0]
    written = dataset.table("captions/fake", "s").column("captions").to_pylist()
    for column in (0, 1):
        stored = dataset.numpy("embeddings/large/text/fake", "s", f"caption_{column:03d}")
        expected = round_mantissa(teacher.embed_texts([texts[column] for texts in written])[0], 7)
        np.testing.assert_array_equal(stored, expected)
    with dataset.open("embeddings/large/text/original", "s") as file:
        assert "captions_sha256" not in file.footer
    with dataset.open("embeddings/large/text/fake", "s") as file:
        assert len(file.footer["captions_sha256"]) == 64


class MuteCaptioner(FakeCaptioner):
    """Writes nothing for every third sample."""

    def caption(self, requests: Any) -> list[list[str]]:
        return [[] if int(request.key) % 3 == 0 else [f"about {request.key}"] for request in requests]


class DumbTeacher(FakeTeacher):
    """Gives nothing finite for dark images."""

    def embed_images(self, views: UInt8[np.ndarray, "rows size size 3"]) -> Embeddings:
        embeddings = super().embed_images(views)
        embeddings[views.mean(axis=(1, 2, 3)) < 120] = np.nan
        return embeddings


def test_what_does_not_exist_is_null_and_counted(tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "s.tar", pairs(10))
    plan = fake_plan(teachers=[DumbTeacher("dumb", dim=6)], captioners=[MuteCaptioner("mute")])
    run(plan, tmp_path / "in", tmp_path / "out")
    dataset = reinforce.open_dataset(str(tmp_path / "out"))
    captions = dataset.table("captions/mute", "s").column("captions").to_pylist()
    assert [texts is None for texts in captions] == [i % 3 == 0 for i in range(10)]
    with dataset.open("captions/mute", "s") as file:
        assert file.footer["nulls"] == {"captioner_failed": 4}
    image = dataset.table("embeddings/dumb/image", "s", ["view_000", "view_001", "view_002"])
    num_nulls = sum(image.column(name).null_count for name in image.column_names)
    assert 0 < num_nulls < 30
    with dataset.open("embeddings/dumb/image", "s") as file:
        assert file.footer["nulls"] == {"non_finite": num_nulls}
    text = dataset.table("embeddings/dumb/text/mute", "s", ["caption_000", "caption_001"])
    assert [text.column(name).null_count for name in text.column_names] == [4, 10]


def test_captions_that_someone_already_has(tmp_path: Path) -> None:
    """By a field of the source's JSON and by Parquet: right key, right shard, bounded, nothing for who has none."""
    for stem in "ab":
        members = pairs(5)
        for index in (0, 2, 3):
            document = {"better": [f"{stem} {index} first", f"{stem} {index} second", f"{stem} {index} third"]}
            members.append((f"{index:05d}.json", json.dumps(document).encode()))
        write_tar(tmp_path / "in" / f"{stem}.tar", members)
    table = {"stem": ["b", "a", "a"], "key": ["00001"] * 2 + ["00004"], "captions": [["of b"], ["of a"], ["four", "4"]]}
    pq.write_table(pa.table(table), tmp_path / "captions.parquet")
    kinds = {
        "field": CaptionerConfig(kind="files", field="json.better"),
        "parquet": CaptionerConfig(kind="files", path=str(tmp_path / "captions.parquet")),
    }
    cpu = torch.device("cpu")
    captioners = [load_captioner(name, kind, device=cpu, batch_size=4) for name, kind in kinds.items()]
    run(fake_plan(captioners=captioners), tmp_path / "in", tmp_path / "out")
    dataset = reinforce.open_dataset(str(tmp_path / "out"))
    written = {
        (name, stem): dataset.table(f"captions/{name}", stem).column("captions").to_pylist()
        for name in kinds
        for stem in "ab"
    }
    for stem in "ab":
        expected = [[f"{stem} {i} first", f"{stem} {i} second"] if i in (0, 2, 3) else None for i in range(5)]
        assert written["field", stem] == expected
    assert written["parquet", "a"] == [None, ["of a"], None, None, ["four", "4"]]
    assert written["parquet", "b"] == [None, ["of b"], None, None, None]


def test_stored_captions_need_no_source(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "in" / "a.tar", pairs(5))
    run(fake_plan(captioners=[]), tmp_path / "in", tmp_path / "out")
    pq.write_table(pa.table({"key": ["00002"], "captions": [["two"]]}), tmp_path / "captions.parquet")
    config = CaptionerConfig(kind="files", path=str(tmp_path / "captions.parquet"))
    captioner = load_captioner("given", config, device=torch.device("cpu"), batch_size=4)
    path.write_bytes(b"the tar is gone")
    assert run(fake_plan(captioners=[captioner]), tmp_path / "in", tmp_path / "out").failed == {}
    dataset = reinforce.open_dataset(str(tmp_path / "out"))
    stored = dataset.numpy("embeddings/small/text/given", "a", "caption_000")
    assert [bool(np.isnan(row).any()) for row in stored] == [True, True, False, True, True]


def identities(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and modification time: an object that was written again has others."""
    paths = [path for path in folder.rglob("*") if path.is_file() and "runs" not in path.parts]
    return {str(p.relative_to(folder)): (p.stat().st_ino, p.stat().st_mtime_ns) for p in paths}


class CountingTeacher(FakeTeacher):
    """Counts the rows it embeds."""

    num_views = num_texts = 0

    def embed_images(self, views: UInt8[np.ndarray, "rows size size 3"]) -> Embeddings:
        self.num_views += len(views)
        return super().embed_images(views)

    def embed_tokens(self, texts: Sequence[TokenizedText]) -> Embeddings:
        self.num_texts += len(texts)
        return super().embed_tokens(texts)


def test_a_captioner_then_a_teacher_added_later_rewrite_nothing(tmp_path: Path) -> None:
    for stem in "ab":
        write_tar(tmp_path / "in" / f"{stem}.tar", pairs(6))
    first = CountingTeacher("first", dim=8)
    run(fake_plan(teachers=[first], captioners=[]), tmp_path / "in", tmp_path / "out")
    assert (first.num_views, first.num_texts) == (36, 12)
    before = identities(tmp_path / "out")
    run(fake_plan(teachers=[first]), tmp_path / "in", tmp_path / "out")
    between = identities(tmp_path / "out")
    assert before.items() <= between.items()
    assert {name.split("/")[0] for name in between.keys() - before.keys()} == {"captions", "embeddings"}
    # Only the texts of the new captions: no view, no original caption again.
    assert (first.num_views, first.num_texts) == (36, 12 + 24)
    second = CountingTeacher("second", dim=5, image_size=16)
    run(fake_plan(teachers=[first, second]), tmp_path / "in", tmp_path / "out")
    after = identities(tmp_path / "out")
    assert between.items() <= after.items()
    assert (first.num_views, first.num_texts, second.num_views, second.num_texts) == (36, 36, 36, 36)
    together = fake_plan(teachers=[CountingTeacher("first", dim=8), second])
    run(together, tmp_path / "in", tmp_path / "at_once")
    later, at_once = files_of(tmp_path / "out"), files_of(tmp_path / "at_once")
    assert later == at_once


def test_resume_computes_only_what_is_missing_and_never_overwrites(tmp_path: Path) -> None:
    for stem in "abc":
        write_tar(tmp_path / "in" / f"{stem}.tar", pairs(5))
    run(fake_plan(), tmp_path / "in", tmp_path / "out")
    complete = files_of(tmp_path / "out")
    for name in ("embeddings/small/image/b.parquet", "samples/c.parquet", "captions/fake/a.parquet"):
        (tmp_path / "out" / name).unlink()
    before = identities(tmp_path / "out")
    summary = run(fake_plan(), tmp_path / "in", tmp_path / "out")
    assert summary.done.num_files == 3
    assert files_of(tmp_path / "out") == complete
    assert before.items() <= identities(tmp_path / "out").items()
    again = run(fake_plan(), tmp_path / "in", tmp_path / "out")
    assert (again.num_complete_before, again.done.num_samples) == (3, 0)


def test_two_runs_at_once_overwrite_nothing(tmp_path: Path) -> None:
    """A run that listed before another committed computes again, in vain, and changes no object."""
    write_tar(tmp_path / "in" / "a.tar", pairs(5))
    run(fake_plan(), tmp_path / "in", tmp_path / "out")
    before = identities(tmp_path / "out")
    _, refs = find_shards([str(tmp_path / "in")])
    task = missing_of(refs[0], fake_plan(), existing=set())
    assert task is not None
    output = open_store(str(tmp_path / "out"))
    summary = run_local([task], fake_plan(), output, Console(file=io.StringIO()))
    assert (summary.done.num_samples, summary.done.num_files) == (5, 0)
    assert identities(tmp_path / "out") == before


def test_what_a_killed_run_spooled_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    for name in ("reinforce-spool-dead", "reinforce-spool-live", "somebody-elses"):
        (tmp_path / "tmp" / name).mkdir(parents=True)
        (tmp_path / "tmp" / name / "lock").touch()
    write_tar(tmp_path / "in" / "a.tar", pairs(2))
    with (tmp_path / "tmp" / "reinforce-spool-live" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run(fake_plan(), tmp_path / "in", tmp_path / "out")
    left = sorted(path.name for path in (tmp_path / "tmp").iterdir())
    assert left == ["reinforce-spool-live", "somebody-elses"]


@pytest.mark.parametrize(
    ("config", "fields"),
    [
        ({"seed": 1}, "spine.seed is 0 there and 1 in this recipe"),
        ({"views": {"count": 2, "hflip": 0.25}}, "view_policy.hflip is 0.5 there and 0.25"),
        ({"views": {"count": 3, "hflip": 0.5}}, "content.num_views is 3 there and 4"),
        ({"source": {"max_captions": 2}}, "spine.source.max_captions is 5 there and 2"),
    ],
)
def test_a_recipe_with_another_meaning_is_refused(tmp_path: Path, config: dict[str, Any], fields: str) -> None:
    write_tar(tmp_path / "in" / "s.tar", pairs(2))
    run(fake_plan(), tmp_path / "in", tmp_path / "out")
    with pytest.raises(DatasetMismatchError) as raised:
        run(fake_plan(config), tmp_path / "in", tmp_path / "out")
    assert fields in str(raised.value)


def test_another_teacher_under_the_same_name_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "s.tar", pairs(2))
    run(fake_plan(teachers=[FakeTeacher("t")]), tmp_path / "in", tmp_path / "out")
    with pytest.raises(DatasetMismatchError, match=r"mantissa_bits is 7 there and 4 in this recipe"):
        run(fake_plan(teachers=[FakeTeacher("t", mantissa_bits=4)]), tmp_path / "in", tmp_path / "out")


def test_how_it_is_run_is_no_difference(tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "s.tar", pairs(9))
    run(fake_plan(), tmp_path / "in", tmp_path / "one")
    run(fake_plan({"batch_size": 64, "workers": 2}), tmp_path / "in", tmp_path / "two")
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_bad_shards_fail_alone_and_a_repaired_one_is_taken_up(tmp_path: Path) -> None:
    for stem in "abc":
        write_tar(tmp_path / "in" / f"{stem}.tar", pairs(4))
    whole = (tmp_path / "in" / "b.tar").read_bytes()
    (tmp_path / "in" / "b.tar").write_bytes(whole[:3000])
    summary = run(fake_plan(), tmp_path / "in", tmp_path / "out")
    assert list(summary.failed) == ["b"]
    assert "truncated" in summary.failed["b"]
    assert reinforce.open_dataset(str(tmp_path / "out")).stems == ["a", "c"]
    failure = json.loads((tmp_path / "out" / "failures" / "b.json").read_text())
    assert len(failure["attempts"]) == 1
    (tmp_path / "in" / "b.tar").write_bytes(whole)
    write_tar(tmp_path / "in" / "d.tar", pairs(1))
    summary = run(fake_plan(), tmp_path / "in", tmp_path / "out", retry_failed=True)
    assert (summary.failed, summary.num_shards) == ({}, 1)
    assert reinforce.open_dataset(str(tmp_path / "out")).stems == ["a", "b", "c"]
    assert not (tmp_path / "out" / "failures" / "b.json").exists()


class FailingTeacher(FakeTeacher):
    """Fails as often as it is told to."""

    def __init__(self, name: str, num_failures: int, error: Exception) -> None:
        super().__init__(name)
        self.num_failures, self.error = num_failures, error

    def embed_tokens(self, texts: Sequence[TokenizedText]) -> Embeddings:
        if self.num_failures:
            self.num_failures -= 1
            raise self.error
        return super().embed_tokens(texts)


def test_a_failure_that_passes_is_tried_again(tmp_path: Path) -> None:
    for stem in "ab":
        write_tar(tmp_path / "in" / f"{stem}.tar", pairs(6))
    plan = fake_plan(teachers=[FailingTeacher("f", 2, RuntimeError("flaky"))])
    assert run(plan, tmp_path / "in", tmp_path / "out").failed == {}
    plan = fake_plan(teachers=[FailingTeacher("f", 10**6, RuntimeError("broken"))])
    summary = run(plan, tmp_path / "in", tmp_path / "other")
    assert summary.failed == {"a": "RuntimeError: broken", "b": "RuntimeError: broken"}
    assert len(json.loads((tmp_path / "other" / "failures" / "a.json").read_text())["attempts"]) == 3


def test_a_full_disk_stops_the_run(tmp_path: Path) -> None:
    for stem in "ab":
        write_tar(tmp_path / "in" / f"{stem}.tar", pairs(6))
    plan = fake_plan(teachers=[FailingTeacher("f", 1, StorageError("no space left", errno.ENOSPC))])
    with pytest.raises(StorageError, match="no space left"):
        run(plan, tmp_path / "in", tmp_path / "out")
    assert not list((tmp_path / "out").glob("embeddings/f/*/*.parquet"))


def test_a_changed_source_is_refused_not_mixed(tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "s.tar", pairs(4))
    run(fake_plan(captioners=[]), tmp_path / "in", tmp_path / "out")
    write_tar(tmp_path / "in" / "s.tar", pairs(4, start=1))
    summary = run(fake_plan(), tmp_path / "in", tmp_path / "out")
    assert "has changed since its spine was written" in summary.failed["s"]
    assert not (tmp_path / "out" / "captions" / "fake" / "s.parquet").exists()


def test_a_damaged_file_of_an_earlier_build_fails_its_shard_only(tmp_path: Path) -> None:
    """More samples than may be prepared ahead: what a failed shard leaves unused must not hold up the next."""
    for stem in "ab":
        write_tar(tmp_path / "in" / f"{stem}.tar", pairs(40))
    run(fake_plan(teachers=[]), tmp_path / "in", tmp_path / "out")
    (tmp_path / "out" / "captions" / "fake" / "a.parquet").write_bytes(b"damaged")
    summary = run(fake_plan(), tmp_path / "in", tmp_path / "out")
    assert list(summary.failed) == ["a"]
    assert "captions/fake/a.parquet: not a file of this format" in summary.failed["a"]
    assert reinforce.open_dataset(str(tmp_path / "out")).stems_of("embeddings/large/image") == ["b"]


def test_selection_and_limit(tmp_path: Path) -> None:
    for stem in "abc":
        write_tar(tmp_path / "in" / f"{stem}.tar", pairs(6))
    table = pa.table({"stem": ["a", "c", "c"], "key": ["00001", "00005", "00000"]})
    pq.write_table(table, tmp_path / "selection.parquet")
    selection = read_selection(str(tmp_path / "selection.parquet"))
    assert selection.stems == ["a", "c"]
    plan = fake_plan(selection=selection, limit_samples=5)
    summary = run(plan, [str(tmp_path / "in" / "a.tar"), str(tmp_path / "in" / "c.tar")], tmp_path / "out")
    dataset = reinforce.open_dataset(str(tmp_path / "out"))
    kept = {stem: dataset.read(stem, ["captions/fake"]).column("key").to_pylist() for stem in dataset.stems}
    assert kept == {"a": ["00001"], "c": ["00000"]}
    assert summary.done.drops["not_selected"] == 10
    assert read_selection(_written(pa.concat_tables([table, table]), tmp_path)).sha256 == selection.sha256
    large = table.cast(pa.schema([("stem", pa.large_string()), ("key", pa.large_string())]))
    assert read_selection(_written(large, tmp_path)).sha256 == selection.sha256
    with pytest.raises(ConfigError, match="needs a string column 'stem'; it has shard: string, key: string"):
        read_selection(_written(table.rename_columns(["shard", "key"]), tmp_path))
    for name in ("stem", "key"):
        columns = {"stem": ["a", "b"], "key": ["c", "d"]} | {name: ["a", None]}
        with pytest.raises(ConfigError, match=f"column '{name}' has nulls"):
            read_selection(_written(pa.table(columns), tmp_path))


def _written(table: pa.Table, folder: Path) -> str:
    pq.write_table(table, folder / "other.parquet")
    return str(folder / "other.parquet")


class WaitingTeacher(FakeTeacher):
    """At the last batch of the first shard, waits until the second shard's samples have been rendered."""

    def __init__(self, name: str, prepared: threading.Event) -> None:
        super().__init__(name)
        self.prepared = prepared
        self.num_batches = 0

    def embed_images(self, views: UInt8[np.ndarray, "rows size size 3"]) -> Embeddings:
        self.num_batches += 1
        if self.num_batches == 2:
            assert self.prepared.wait(timeout=60), "nothing of the next shard was prepared meanwhile"
        return super().embed_images(views)


def test_cpu_work_runs_ahead_across_the_end_of_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(tmp_path / "in" / "a.tar", pairs(8))
    write_tar(tmp_path / "in" / "b.tar", pairs(200, start=8))
    prepared, decoded = threading.Event(), []

    def watch(data: bytes, max_pixels: int) -> Any:
        decoded.append(data)
        if len(decoded) > 8:
            prepared.set()
        return decode(data, max_pixels)

    monkeypatch.setattr("reinforce.prefetch.decode", watch)
    plan = fake_plan({"views": {"count": 0}}, teachers=[WaitingTeacher("w", prepared)], captioners=[])
    assert run(plan, tmp_path / "in", tmp_path / "out").failed == {}


def test_no_more_is_prepared_ahead_than_three_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(tmp_path / "in" / "a.tar", pairs(60))
    counts = {"decoded": 0, "embedded": 0, "most_ahead": 0}

    def watch(data: bytes, max_pixels: int) -> Any:
        counts["decoded"] += 1
        counts["most_ahead"] = max(counts["most_ahead"], counts["decoded"] - counts["embedded"])
        return decode(data, max_pixels)

    class Slow(FakeTeacher):
        def embed_images(self, views: UInt8[np.ndarray, "rows size size 3"]) -> Embeddings:
            threading.Event().wait(0.02)
            counts["embedded"] += len(views)
            return super().embed_images(views)

    monkeypatch.setattr("reinforce.prefetch.decode", watch)
    plan: BuildPlan = fake_plan({"views": {"count": 0}}, teachers=[Slow("slow")], captioners=[])
    run(plan, tmp_path / "in", tmp_path / "out")
    # A batch at the teacher, one ready for it, one in the making, and what the pool has in hand.
    assert counts["most_ahead"] <= 3 * 4 + SAMPLES_A_WORKER * 1
    assert counts["decoded"] == 60
