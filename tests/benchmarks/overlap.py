"""Whether a build takes as long as its slowest part: wall time against the larger of render time and teacher time.

    python -m tests.benchmarks.overlap                      (about three minutes on two idle cores)

A stand-in teacher sleeps as long as a device would compute, so that it needs none of the cores that render. 1,280
photographs in 8 shards, 5 views of 224 px, one thread that renders. Rendering alone is a build whose teacher takes no
time, the teacher alone the sum of its naps. In the last two rows the store takes time as well, for every file, and a
captioner on a server for every batch. Every round has all of them; medians of rounds.
"""

import io
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from rich.console import Console

from reinforce.captioners import CaptionRequest, FakeCaptioner
from reinforce.config import BuildConfig
from reinforce.plan import BuildPlan
from reinforce.runners import run_plan
from reinforce.sample import Embeddings
from reinforce.storage import find_shards
from reinforce.storage.local import LocalFolder
from reinforce.teachers import FakeTeacher
from tests.benchmarks.sizing import SHARDS, read_images
from tests.benchmarks.timing import with_range
from tests.tars import write_tar

NUM_SHARDS, SHARD_ROWS = 8, 160
BATCH_SIZE, NUM_VIEWS = 16, 5
NUM_ROUNDS = 3


class SleepingTeacher(FakeTeacher):
    """Takes its time over every view, without a core."""

    def __init__(self, view_s: float) -> None:
        super().__init__("teacher", image_size=224)
        self.view_s = view_s
        self.slept_s = 0.0

    def embed_images(self, views: UInt8[np.ndarray, "rows size size 3"]) -> Embeddings:
        self.slept_s += self.view_s * len(views)
        time.sleep(self.view_s * len(views))
        return np.tile(np.eye(1, self.dim, dtype=np.float32), (len(views), 1))


class SleepingCaptioner(FakeCaptioner):
    """A captioner on a server."""

    is_remote = True

    def __init__(self, batch_s: float) -> None:
        super().__init__("captioner", image_size=224)
        self.batch_s = batch_s

    def caption(self, requests: Sequence[CaptionRequest]) -> list[list[str]]:
        time.sleep(self.batch_s)
        return super().caption(requests)


class SlowFolder(LocalFolder):
    """A store that takes its time over every file of a shard."""

    def __init__(self, folder: str, put_s: float) -> None:
        super().__init__(folder)
        self.put_s = put_s

    def put_if_absent(self, path: str, data: bytes | Path) -> bool:
        if path.endswith(".parquet"):
            time.sleep(self.put_s)
        return super().put_if_absent(path, data)


@dataclass(frozen=True)
class Side:
    """A build, with how long its teacher takes of what rendering takes."""

    name: str
    teacher_share: float
    put_s: float = 0.0
    caption_share: float = 0.0


SIDES = (
    Side("teacher half as long as rendering", 0.5),
    Side("teacher as long as rendering", 1.0),
    Side("teacher twice as long", 2.0),
    Side("teacher as long, 0.05 s to store a file", 1.0, put_s=0.05),
    Side("teacher as long, captioner as long again", 1.0, caption_share=1.0),
)


def build(source: Path, side: Side, render_s: float) -> tuple[float, float]:
    """Seconds of wall time of a build, and those the teacher slept."""
    num_rows = NUM_SHARDS * SHARD_ROWS
    teacher = SleepingTeacher(side.teacher_share * render_s / (num_rows * (NUM_VIEWS + 1)))
    num_batches = NUM_SHARDS * SHARD_ROWS // BATCH_SIZE
    captioners = [SleepingCaptioner(side.caption_share * render_s / num_batches)] if side.caption_share else []
    config = {"batch_size": BATCH_SIZE, "workers": 1, "views": {"count": NUM_VIEWS}, "source": {"captions": []}}
    plan = BuildPlan(BuildConfig.model_validate(config), [teacher], captioners)
    root, refs = find_shards([str(source)])
    with tempfile.TemporaryDirectory() as folder:
        output = SlowFolder(folder, side.put_s)
        start = time.perf_counter()
        summary = run_plan(plan, refs, output, source_root=root, console=Console(file=io.StringIO()))
        elapsed_s = time.perf_counter() - start
    assert not summary.failed
    assert summary.done.num_kept == num_rows
    return elapsed_s, teacher.slept_s


def main() -> None:
    torch.set_num_threads(1)
    images = read_images(SHARDS, 80)
    ratios: dict[str, list[float]] = {side.name: [] for side in SIDES}
    rendering: list[float] = []
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary)
        for shard in range(NUM_SHARDS):
            members = [(f"{shard}-{index}.jpg", images[index % len(images)][1]) for index in range(SHARD_ROWS)]
            write_tar(source / f"{shard}.tar", members)
        build(source, Side("warm-up", 0.0), 1.0)
        for _ in range(NUM_ROUNDS):
            render_s, _ = build(source, Side("rendering alone", 0.0), 1.0)
            rendering.append(render_s)
            for side in SIDES:
                elapsed_s, teacher_s = build(source, side, render_s)
                ratios[side.name].append(elapsed_s / max(render_s, teacher_s))
    seconds = with_range(rendering, digits=1)
    print(f"{NUM_SHARDS * SHARD_ROWS} photographs in {NUM_SHARDS} shards; rendering alone takes {seconds} s\n")
    print("| build | wall time, of the larger of render and teacher time (range) |\n|---|---|")
    for name, found in ratios.items():
        print(f"| {name} | {with_range(found)} |")


if __name__ == "__main__":
    main()
