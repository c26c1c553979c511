"""What a sample costs in training: from stored signals, an image decoded for one or several views, and in plain CLIP.

    python -m tests.benchmarks.training_epoch               (about five minutes on two cores)

Whole runs of the trainer's steps with one reader process, of the same images and the same student: plain CLIP (loss
`clip`, the original caption, a fresh view of every decoded image, no signals) against `mobileclip` with two teachers of
768 dims. Where decoding is the limit: photographs of about 640 x 480 (those of ../shared, or generated ones) and a
small student at 64 px. Where the model is: the same pictures with the shorter side 128 and a mobile network at 96 px.
A run is timed whole, from the opening of its first shard to its last step.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

from reinforce.captioners import FakeCaptioner
from reinforce.config import (
    BuildConfig,
    DataConfig,
    LossConfig,
    OptimizerConfig,
    StudentModelConfig,
)
from reinforce.plan import BuildPlan
from reinforce.student.learner import Learner, backward
from reinforce.student.losses import StudentLoss
from reinforce.student.models import Student, build_student
from reinforce.student.optimize import make_optimizer
from reinforce.student.plan import plan_reading
from reinforce.student.reader import ReinforcedDataset
from tests.benchmarks.student_reader import RandomTeacher, photographs, write_photographs
from tests.benchmarks.timing import alternate, with_range
from tests.fakes import run

NUM_SHARDS = 2
NUM_VIEWS = 4
TEACHERS = ("teacher_a", "teacher_b")

ORIGINAL_ONLY: dict[str, Any] = {"captioners": []}
PLAIN = "plain clip, one caption"
SIDES: dict[str, dict[str, Any]] = {
    PLAIN: {"loss": {"kind": "clip"}, "data": {**ORIGINAL_ONLY, "views": 1000}},
    "plain clip, two captions": {"loss": {"kind": "clip"}, "data": {"views": 1000}},
    "signals, one caption, 1 view a decode": {"data": ORIGINAL_ONLY},
    "signals, one caption, 4 apart": {"data": {**ORIGINAL_ONLY, "views_per_decode": 4}},
    "signals, one caption, 4 together": {
        "data": {**ORIGINAL_ONLY, "views_per_decode": 4, "views_placement": "together"}
    },
    "signals, two captions, 1 view a decode": {},
    "signals, two captions, 2 apart": {"data": {"views_per_decode": 2}},
    "signals, two captions, 4 apart": {"data": {"views_per_decode": 4}},
    "signals, two captions, 4 together": {"data": {"views_per_decode": 4, "views_placement": "together"}},
}
"""Name -> the fields of `student.loss` and `student.data`."""


@dataclass(frozen=True)
class Case:
    """Images and a student, and how much of it is measured."""

    name: str
    shorter_side: int | None
    """Of the images; None: as they are."""
    model: dict[str, Any]
    batch_size: int
    shard_rows: int
    num_rounds: int
    sides: tuple[str, ...]

    @property
    def num_samples(self) -> int:
        """Samples seen in a run."""
        return NUM_SHARDS * self.shard_rows * NUM_VIEWS


CASES = (
    Case(
        "Decoding is the limit: about 640 x 480, test_resnet at 64 px, text 2 x 64 on 16 tokens, batch 64",
        None,
        {
            "backbone": "test_resnet",
            "image_size": 64,
            "embed_dim": 128,
            "text": {"context_length": 16, "width": 64, "heads": 2, "layers": 2},
        },
        batch_size=64,
        shard_rows=128,
        num_rounds=5,
        sides=tuple(SIDES),
    ),
    Case(
        "The model is the limit: shorter side 128, mobilenetv4_conv_small at 96 px, text 4 x 256, batch 64",
        128,
        {
            "backbone": "mobilenetv4_conv_small",
            "image_size": 96,
            "embed_dim": 512,
            "text": {"context_length": 16, "width": 256, "heads": 4, "layers": 4},
        },
        batch_size=64,
        shard_rows=96,
        num_rounds=3,
        sides=tuple(name for name in SIDES if " 2 " not in name),
    ),
)


def build(folder: Path, case: Case) -> str:
    """The source and a dataset of it; returns where that is."""
    found = list(photographs(case.shorter_side))
    write_photographs(folder / "source", found, NUM_SHARDS, case.shard_rows)
    config = {"views": {"count": NUM_VIEWS}, "source": {"captions": ["txt"], "max_captions": 1}, "workers": 2}
    teachers = [RandomTeacher(name, seed) for seed, name in enumerate(TEACHERS)]
    captioners = [FakeCaptioner("captioner", image_size=None, num_captions=2)]
    summary = run(
        BuildPlan(BuildConfig.model_validate(config), teachers, captioners), folder / "source", folder / "reinforced"
    )
    assert not summary.failed
    return str(folder / "reinforced")


def make_epochs(case: Case, side: dict[str, Any], dataset: str, student: Student) -> Callable[[], object]:
    """A training on as many epochs as views are stored, with a reader of its own from its first shard to its last."""
    assert student.tokenizer is not None
    data = DataConfig.model_validate({"workers": 1} | side.get("data", {}))
    loss_config = LossConfig.model_validate(side.get("loss", {}))
    plan = plan_reading(dataset, data, uses_teachers=loss_config.kind == "mobileclip")
    learner = Learner(student, loss_config, {})
    compute_loss = StudentLoss(loss_config, plan.logit_scales)
    optimizer = make_optimizer(learner, OptimizerConfig(learning_rate=1e-4))
    reader = ReinforcedDataset(
        plan, student.tokenizer, batch_size=case.batch_size, image_size=student.image_size, epochs=NUM_VIEWS
    )

    def train() -> None:
        num_samples = 0
        for batch in reader.loader():
            optimizer.zero_grad(set_to_none=True)
            backward(learner, compute_loss, batch)
            clip_grad_norm_(learner.parameters(), 1.0)
            optimizer.step()
            num_samples += len(batch)
        assert num_samples == case.num_samples

    return train


def print_case(case: Case, folder: Path) -> None:
    dataset = build(folder, case)
    # All sides train one student: copies of it at other places in memory differ by more than what is measured here.
    student = build_student(StudentModelConfig.model_validate(case.model), seed=0)
    epochs = {name: make_epochs(case, SIDES[name], dataset, student) for name in case.sides}
    costs = alternate(epochs, case.num_rounds, with_warm_up=False)
    print(f"\n{case.name}; {case.num_samples:,} samples seen a run, {case.num_rounds} runs of each\n")
    print("| training | wall a sample | CPU a sample | wall to plain: median of rounds (range) | CPU likewise |")
    print("|---|---|---|---|---|")
    for name, cost in costs.items():
        pairs = list(zip(cost.runs, costs[PLAIN].runs, strict=True))
        wall = with_range((ours.wall_s / theirs.wall_s for ours, theirs in pairs), digits=3)
        cpu = with_range((ours.cpu_s / theirs.cpu_s for ours, theirs in pairs), digits=3)
        wall_ms, cpu_ms = (1000 * seconds / case.num_samples for seconds in (cost.wall_s, cost.cpu_s))
        print(f"| {name} | {wall_ms:.2f} ms | {cpu_ms:.2f} ms | {wall} | {cpu} |", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    for case in CASES:
        with tempfile.TemporaryDirectory() as temporary:
            print_case(case, Path(temporary))


if __name__ == "__main__":
    main()
