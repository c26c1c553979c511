"""What a sample costs in training: from stored signals, an image decoded for one or several views, and in plain CLIP.

    python -m tests.benchmarks.training_epoch               (about five minutes on two cores)

Whole runs of the trainer's steps with one reader process, of the same images and the same student: plain CLIP (loss
`clip`, the original caption, a fresh view of every decoded image, no signals) against `mobileclip` with two teachers of
768 dims. Where decoding is the limit: photographs of about 640 x 480 (those of ../shared, or generated ones) and a
small student at 64 px. Where the model is: the same pictures with the shorter side 128 and a mobile network at 96 px.
A run is timed from its first batch to its last, when readers are at work and batches wait.
"""

import io
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from reinforce.captioners import FakeCaptioner
from reinforce.config import BuildConfig, SourceConfig
from reinforce.config.student import StudentConfig
from reinforce.plan import BuildPlan
from reinforce.shards.source import SourceShard
from reinforce.student.batch import Batch
from reinforce.student.distributed import Processes
from reinforce.student.plan import ReadPlan, plan_reading
from reinforce.student.run import Run
from tests.benchmarks.student_reader import RandomTeacher
from tests.benchmarks.timing import Cost, Costs
from tests.benchmarks.truth import SHARED
from tests.fakes import run
from tests.tars import encode, image_bytes, write_tar

NUM_SHARDS = 4
NUM_VIEWS = 4
TEACHERS = ("teacher_a", "teacher_b")


@dataclass(frozen=True)
class Case:
    """Images and a student, and how much of it is measured."""

    name: str
    shorter_side: int | None
    """Of the images; None: as they are."""
    model: dict[str, Any]
    batch_size: int
    shard_rows: int
    num_steps: int
    """Of a run; after as many batches as are read before the first step. A multiple of the views of a decode."""
    num_rounds: int


CASES = (
    Case(
        "decoding is the limit: 640 x 480, test_resnet at 64 px, text 2 x 64 on 16 tokens",
        None,
        {
            "backbone": "test_resnet",
            "image_size": 64,
            "embed_dim": 128,
            "text": {"context_length": 16, "width": 64, "heads": 2, "layers": 2},
        },
        batch_size=64,
        shard_rows=256,
        num_steps=16,
        num_rounds=5,
    ),
    Case(
        "the model is the limit: shorter side 128, mobilenetv4_conv_small at 96 px, text 4 x 256 on 16 tokens",
        128,
        {
            "backbone": "mobilenetv4_conv_small",
            "image_size": 96,
            "embed_dim": 512,
            "text": {"context_length": 16, "width": 256, "heads": 4, "layers": 4},
        },
        batch_size=64,
        shard_rows=256,
        num_steps=8,
        num_rounds=5,
    ),
)

ORIGINAL_ONLY: dict[str, Any] = {"captioners": []}
PLAIN = "plain clip, one caption"
SIDES: dict[str, dict[str, Any]] = {
    PLAIN: {"loss": {"kind": "clip"}, "data": {**ORIGINAL_ONLY, "views": 1000}},
    "plain clip, two captions": {"loss": {"kind": "clip"}, "data": {"views": 1000}},
    "signals, one caption, 1 view a decode": {"data": ORIGINAL_ONLY},
    "signals, one caption, 4 apart": {"data": {**ORIGINAL_ONLY, "views_per_decode": 4}},
    "signals, two captions, 1 view a decode": {},
    "signals, two captions, 2 apart": {"data": {"views_per_decode": 2}},
    "signals, two captions, 4 apart": {"data": {"views_per_decode": 4}},
    "signals, two captions, 2 together": {"data": {"views_per_decode": 2, "views_placement": "together"}},
    "signals, two captions, 4 together": {"data": {"views_per_decode": 4, "views_placement": "together"}},
}


def pictures(shorter_side: int | None) -> Iterator[tuple[bytes, str]]:
    """JPEGs and their captions."""
    shards = sorted((SHARED / "data" / "coco_mini").glob("*.tar"))
    found = [s for shard in shards for s in SourceShard(shard, SourceConfig(captions=("txt",))).samples()]
    samples = [(sample.image, sample.captions[0]) for sample in found]
    samples = samples or [(image_bytes(i, 640, 480, "JPEG"), f"generated picture {i}") for i in range(60)]
    for data, caption in samples:
        if shorter_side is None:
            yield data, caption
            continue
        image = Image.open(io.BytesIO(data)).convert("RGB")
        ratio = shorter_side / min(image.size)
        size = round(image.width * ratio), round(image.height * ratio)
        yield encode(image.resize(size, Image.Resampling.BICUBIC), "JPEG", quality=90), caption


def build(folder: Path, case: Case) -> str:
    """The source and a dataset of it; returns where that is."""
    endless = enumerate(cycle(list(pictures(case.shorter_side))))
    for shard in range(NUM_SHARDS):
        members = []
        for index, (image, caption) in islice(endless, case.shard_rows):
            members += [(f"{index:06d}.jpg", image), (f"{index:06d}.txt", caption.encode())]
        write_tar(folder / "source" / f"{shard:05d}.tar", members)
    config = {"views": {"count": NUM_VIEWS}, "source": {"captions": ["txt"], "max_captions": 1}, "workers": 2}
    teachers = [RandomTeacher(name, seed) for seed, name in enumerate(TEACHERS)]
    captioners = [FakeCaptioner("captioner", image_size=None, num_captions=2)]
    summary = run(
        BuildPlan(BuildConfig.model_validate(config), teachers, captioners), folder / "source", folder / "reinforced"
    )
    assert not summary.failed
    return str(folder / "reinforced")


class TimedRun(Run):
    """A run that notes the wall time of its steps, from when the first batch is there."""

    first_batch_s = 0.0

    def _step(self, step: int, batch: Batch) -> Any:
        if step == 1:
            self.first_batch_s = time.perf_counter()
        return super()._step(step, batch)


def train(config: StudentConfig, plan: ReadPlan, folder: Path) -> Cost:
    """A run from its first batch: wall time of its steps; CPU time of all its processes, whole, start included."""
    raise NotImplementedError


def main() -> None:
    torch.set_num_threads(1)


if __name__ == "__main__":
    main()
