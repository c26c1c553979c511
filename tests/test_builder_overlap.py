"""What goes on at once in a build: each test would wait for ever if one thing came after the other."""

import errno
import io
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import UInt8
from rich.console import Console

from reinforce.captioners import CaptionRequest, FakeCaptioner
from reinforce.runners import run_plan
from reinforce.sample import Embeddings
from reinforce.storage import StorageError, find_shards, open_store
from reinforce.storage.local import LocalFolder
from reinforce.teachers import FakeTeacher
from tests.fakes import fake_plan, files_of, run
from tests.tars import pairs, write_tar


def wait_for(event: threading.Event, what: str) -> None:
    assert event.wait(30), what


class TellingTeacher(FakeTeacher):
    """Tells of each batch it is given."""

    def __init__(self, seen: Sequence[threading.Event]) -> None:
        super().__init__("t")
        self.seen = iter(seen)

    def embed_images(self, views: UInt8[np.ndarray, "rows size size 3"]) -> Embeddings:
        event = next(self.seen, None)
        if event is not None:
            event.set()
        return super().embed_images(views)


def test_a_shard_is_committed_while_the_next_one_is_computed(tmp_path: Path) -> None:
    for stem in "ab":
        write_tar(tmp_path / "in" / f"{stem}.tar", pairs(3))
    first, second = threading.Event(), threading.Event()

    class WaitingFolder(LocalFolder):
        def put_if_absent(self, path: str, data: bytes | Path) -> bool:
            if path == "samples/a.parquet":
                wait_for(second, "the next shard was not computed meanwhile")
            return super().put_if_absent(path, data)

    plan = fake_plan(teachers=[TellingTeacher([first, second])], captioners=[])
    root, refs = find_shards([str(tmp_path / "in")])
    (tmp_path / "out").mkdir()
    output = WaitingFolder(str(tmp_path / "out"))
    summary = run_plan(plan, refs, output, source_root=root, console=Console(file=io.StringIO()))
    assert (summary.failed, summary.done.num_kept) == ({}, 6)


class AheadCaptioner(FakeCaptioner):
    """A captioner on a server, which tells when it is asked for a second batch."""

    is_remote = True

    def __init__(self) -> None:
        super().__init__("fake", image_size=16)
        self.asked_again = threading.Event()
        self.num_batches = 0

    def caption(self, requests: Sequence[CaptionRequest]) -> list[list[str]]:
        self.num_batches += 1
        if self.num_batches == 2:
            self.asked_again.set()
        return super().caption(requests)


class WaitingTeacher(FakeTeacher):
    """Embeds the first batch only when the captions of the second are being written."""

    def __init__(self, captioner: AheadCaptioner) -> None:
        super().__init__("t")
        self.captioner = captioner

    def embed_images(self, views: UInt8[np.ndarray, "rows size size 3"]) -> Embeddings:
        wait_for(self.captioner.asked_again, "no captions were written meanwhile")
        return super().embed_images(views)


def test_a_captioner_on_a_server_runs_beside_the_teachers_and_writes_the_same(tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "a.tar", pairs(18))
    captioner = AheadCaptioner()
    beside = fake_plan(teachers=[WaitingTeacher(captioner)], captioners=[captioner])
    assert run(beside, tmp_path / "in", tmp_path / "beside").failed == {}
    inline = fake_plan(teachers=[FakeTeacher("t")])
    run(inline, tmp_path / "in", tmp_path / "inline")
    assert files_of(tmp_path / "beside") == files_of(tmp_path / "inline")


class FullFolder(LocalFolder):
    """A disk that is full when the first signal comes."""

    def put_if_absent(self, path: str, data: bytes | Path) -> bool:
        if path.startswith("embeddings/") and path.endswith(".parquet"):
            raise StorageError("no space left", errno.ENOSPC)
        return super().put_if_absent(path, data)


def test_a_run_that_ends_early_leaves_no_thread_and_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "out").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    for stem in "abcd":
        write_tar(tmp_path / "in" / f"{stem}.tar", pairs(40))
    root, refs = find_shards([str(tmp_path / "in")])
    output = FullFolder(str(tmp_path / "out"))
    with pytest.raises(StorageError, match="no space left"):
        run_plan(fake_plan(), refs, output, source_root=root, console=Console(file=io.StringIO()))
    assert list((tmp_path / "tmp").iterdir()) == []
    left = {thread.name.split("_")[0] for thread in threading.enumerate()}
    assert not left & {"open", "collate", "caption", "write", "commit"}
    assert open_store(str(tmp_path / "out")).exists("samples/a.parquet")
