"""What a training step costs with stored signals: `mobileclip` against `clip`, and its loss against its own limit.

    python -m tests.benchmarks.step_cost                    (about two minutes, one thread)

Whole steps as the trainer takes them (forward, loss, backward, clipping, AdamW), of the same student on the same views;
teachers of 768 dims as ViT-L/14. The loss alone, forward and backward, of one caption a sample and a student of 512
dims, is held against the time of its products alone, at the speed this machine multiplies large matrices.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from reinforce.config import LossConfig, OptimizerConfig
from reinforce.config.student import StudentModelConfig
from reinforce.student.batch import ORIGINAL, SYNTHETIC, Batch
from reinforce.student.compare import Gathered
from reinforce.student.learner import Learner, backward
from reinforce.student.losses import StudentLoss, TeacherPair, affinity_loss, contrastive_loss
from reinforce.student.models import Student, build_student
from reinforce.student.optimize import make_optimizer
from tests.benchmarks.timing import RATIO, alternate

DIM, TEACHER_DIM = 512, 768
LOGIT_SCALE = 70.0
GIGA = 1e9


@dataclass(frozen=True)
class Scale:
    """A student with the batch it is trained on, and how often its steps are measured."""

    name: str
    model: dict[str, Any]
    batch_size: int
    num_rounds: int


SCALES = (
    Scale(
        "mobile: mobilenetv4_conv_small at 96 px, text 4 x 256 on 16 tokens, batch 128",
        {
            "backbone": "mobilenetv4_conv_small",
            "image_size": 96,
            "embed_dim": DIM,
            "text": {"context_length": 16, "width": 256, "heads": 4, "layers": 4},
        },
        batch_size=128,
        num_rounds=5,
    ),
    Scale(
        "tiny: test_resnet at 32 px, text 2 x 64 on 16 tokens, batch 256 (recipe cifar10)",
        {
            "backbone": "test_resnet",
            "image_size": 32,
            "embed_dim": 128,
            "text": {"context_length": 16, "width": 64, "heads": 2, "layers": 2},
        },
        batch_size=256,
        num_rounds=15,
    ),
)


@dataclass(frozen=True)
class Side:
    """A loss with what it reads of a batch."""

    roles: tuple[str, ...]
    loss: dict[str, Any]
    num_teachers: int = 0


ONE_CAPTION, TWO_CAPTIONS = "clip, one caption", "clip, two captions"
BOTH = (ORIGINAL, SYNTHETIC)
SIDES = {
    ONE_CAPTION: Side((ORIGINAL,), {"kind": "clip"}),
    TWO_CAPTIONS: Side(BOTH, {"kind": "clip"}),
    "mobileclip, one teacher": Side(BOTH, {}, 1),
    "mobileclip, two teachers": Side(BOTH, {}, 2),
    "the same and the feature loss": Side(BOTH, {"feature_weight": 2000.0}, 2),
}


def unit_norm(num_rows: int, dim: int, seed: int) -> Tensor:
    """Random rows with a common direction, as embeddings of real models have."""
    return F.normalize(torch.randn(num_rows, dim, generator=torch.Generator().manual_seed(seed)) + 2, dim=1)


def make_batch(side: Side, student: Student, num_rows: int) -> Batch:
    """What the reader would hand over; the views, and the captions of a role, are the same for every side."""
    assert student.tokenizer is not None
    size = (num_rows, 3, student.image_size, student.image_size)
    teachers = [f"t{index}" for index in range(side.num_teachers)]

    def embeddings(seed: int) -> dict[str, Tensor]:
        return {name: unit_norm(num_rows, TEACHER_DIM, 10 * seed + i).half() for i, name in enumerate(teachers)}

    captions = {role: [f"{role} caption of photograph {row}" for row in range(num_rows)] for role in side.roles}
    return Batch(
        keys=[str(row) for row in range(num_rows)],
        stems=["synthetic"] * num_rows,
        images=torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
        texts={role: student.tokenizer(texts) for role, texts in captions.items()},
        teacher_images=embeddings(0),
        teacher_texts={role: embeddings(1 + index) for index, role in enumerate(side.roles)},
    )


def make_step(side: Side, student: Student, num_rows: int) -> Callable[[], object]:
    """A step like the trainer's, on one batch again and again.

    All sides train one student: copies of it at other places in memory differ by more than what is measured here.
    """
    batch = make_batch(side, student, num_rows)
    config, optimizer_config = LossConfig.model_validate(side.loss), OptimizerConfig(learning_rate=1e-4)
    dims = dict.fromkeys(batch.teacher_images, TEACHER_DIM)
    learner = Learner(student, config, dims)
    loss = StudentLoss(config, dict.fromkeys(dims, LOGIT_SCALE))
    optimizer = make_optimizer(learner, optimizer_config)
    assert optimizer_config.clip_norm is not None
    clip_norm = optimizer_config.clip_norm

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        backward(learner, loss, batch)
        clip_grad_norm_(learner.parameters(), clip_norm)
        optimizer.step()

    return step


def print_steps(scale: Scale) -> None:
    student = build_student(StudentModelConfig.model_validate(scale.model), seed=0)
    steps = {name: make_step(side, student, scale.batch_size) for name, side in SIDES.items()}
    costs = alternate(steps, scale.num_rounds)
    print(f"\n{scale.name}; {scale.num_rounds} steps of each. Ratios: {RATIO}\n")
    print("| step | CPU | wall | to one caption | to two captions |\n|---|---|---|---|---|")
    for name, cost in costs.items():
        times = f"{cost.cpu_s:.3f} s | {cost.wall_s:.3f} s"
        ratios = f"{cost.against(costs[ONE_CAPTION])} | {cost.against(costs[TWO_CAPTIONS])}"
        print(f"| {name} | {times} | {ratios} |", flush=True)


def make_loss(num_teachers: int, global_batch: int) -> Callable[[], object]:
    """Forward and backward of one loss between all pairs of a batch: contrastive if there is no teacher."""
    leaves = [unit_norm(global_batch, DIM, seed).requires_grad_() for seed in (0, 1)]
    image, text = (Gathered(leaf, leaf) for leaf in leaves)
    sides = [unit_norm(global_batch, TEACHER_DIM, 2 + seed).half() for seed in range(2 * num_teachers)]
    logit_scale = torch.tensor(50.0, requires_grad=True)

    def run() -> None:
        stored = [Gathered(rows, rows).normalized() for rows in sides]
        teachers = [TeacherPair(u, v, LOGIT_SCALE) for u, v in zip(stored[::2], stored[1::2], strict=True)]
        if teachers:
            loss = affinity_loss(image, text, logit_scale, teachers)
        else:
            loss = contrastive_loss(image, text, logit_scale)
        torch.autograd.grad(loss, [*leaves, logit_scale])

    return run


def num_flops(num_teachers: int, global_batch: int) -> int:
    """Of both directions' products, rows x columns x dim: three for the student, one for each teacher."""
    return 2 * 2 * global_batch**2 * (3 * DIM + num_teachers * TEACHER_DIM)


def print_losses(global_batch: int, num_rounds: int) -> None:
    matrix = torch.randn(2048, 2048)
    losses = {"contrastive": 0, "affinity, one teacher": 1, "affinity, two teachers": 2}
    runs = {name: make_loss(num_teachers, global_batch) for name, num_teachers in losses.items()}
    costs = alternate({"products": lambda: matrix @ matrix, **runs}, num_rounds)
    flops_a_second = 2 * 2048**3 / costs["products"].cpu_s
    for name, num_teachers in losses.items():
        flops, cost = num_flops(num_teachers, global_batch), costs[name]
        limit_s = flops / flops_a_second
        times = f"{cost.cpu_s * 1000:,.1f} ms | {cost.wall_s * 1000:,.1f} ms"
        limit = f"{limit_s * 1000:,.1f} ms at {flops_a_second / GIGA:.0f} GFLOP/s | {cost.cpu_s / limit_s:.2f}"
        print(f"| {global_batch:,} | {name} | {flops / GIGA:.1f} | {times} | {limit} |", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    for scale in SCALES:
        print_steps(scale)
    print("\n| global batch | loss | GFLOP of products | CPU | wall | limit: the products alone | CPU to limit |")
    print("|---|---|---|---|---|---|---|")
    for global_batch, num_rounds in ((256, 15), (1024, 7), (4096, 3)):
        print_losses(global_batch, num_rounds)


if __name__ == "__main__":
    main()
