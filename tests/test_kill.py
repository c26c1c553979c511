"""SIGKILL at random moments of a build: nothing half-visible, nothing computed twice, the same bytes in the end."""

import multiprocessing
import os
import random
import time
from pathlib import Path

import pytest

from reinforce.plan import BuildPlan
from reinforce.sample import Embeddings
from reinforce.storage import open_store
from reinforce.teachers import FakeTeacher
from tests.fakes import fake_plan, files_of, run
from tests.tars import image_bytes, pairs, write_tar

NUM_KILLS = 20
MIN_KILLS_BETWEEN_COMMITS = 12
SHARDS = "abcdef"


class UnhurriedTeacher(FakeTeacher):
    """Takes its time, so that there is a middle to be killed in."""

    def embed_images(self, views: object) -> Embeddings:
        time.sleep(0.004)
        return super().embed_images(views)  # type: ignore[arg-type]


def plan() -> BuildPlan:
    teachers = [UnhurriedTeacher("large", dim=12, image_size=24), FakeTeacher("small", dim=8)]
    return fake_plan({"modalities": {"thermal": "ir.png"}}, teachers=teachers)


def build(source: Path, output: Path) -> None:
    run(plan(), source, output)


def data_files(folder: Path) -> dict[str, bytes]:
    """What a listing of the dataset shows, but for documents."""
    if not folder.exists():
        return {}
    store = open_store(str(folder))
    return {info.path: store.read(info.path) for info in store.list() if info.path.endswith(".parquet")}


@pytest.mark.serial
@pytest.mark.timeout(600)
def test_kill_at_random_moments(tmp_path: Path) -> None:
    seed = int(os.environ.get("REINFORCE_KILL_SEED", "0")) or random.SystemRandom().randrange(1, 2**31)
    print(f"REINFORCE_KILL_SEED={seed}")
    generator = random.Random(seed)
    for stem in SHARDS:
        thermal = [(f"{index:05d}.ir.png", image_bytes(index)) for index in range(ord(stem), ord(stem) + 9)]
        write_tar(tmp_path / "in" / f"{stem}.tar", [*pairs(17, start=ord(stem)), *thermal])
    build(tmp_path / "in", tmp_path / "undisturbed")
    expected = files_of(tmp_path / "undisturbed")
    commits = [path.stat().st_mtime for path in (tmp_path / "undisturbed").rglob("*.parquet")]
    between_commits_s = max(commits) - min(commits)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["reinforce.runners", "tests.fakes"])
    num_between = 0
    for kill in range(NUM_KILLS):
        output = tmp_path / f"killed_{kill}"
        child = processes.Process(target=build, args=(tmp_path / "in", output))
        child.start()
        # One moment in five is anywhere, also before the first commit; the others after it.
        while kill % 5 and child.is_alive() and not list(output.glob("samples/*.parquet")):
            time.sleep(0.002)
        time.sleep(generator.uniform(0, between_commits_s * (0.65 if kill % 5 else 1.5)))
        child.kill()
        child.join()
        visible = data_files(output)
        assert all(expected[name] == data for name, data in visible.items()), "a half-written file was visible"
        num_data_files = sum(name.endswith(".parquet") for name in expected)
        num_between += 0 < len(visible) < num_data_files
        inodes = {name: (output / name).stat().st_ino for name in visible}
        summary = run(plan(), tmp_path / "in", output)
        assert summary.done.num_files == num_data_files - len(visible)
        assert inodes == {name: (output / name).stat().st_ino for name in visible}
        assert files_of(output) == expected, "the finished build differs from an undisturbed one"
    print(f"{num_between} of {NUM_KILLS} kills fell between the first and the last commit")
    assert num_between >= MIN_KILLS_BETWEEN_COMMITS
