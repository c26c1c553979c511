"""Peak memory and time of the affinity loss, forward and backward, above the embeddings it is given.

    python -m tests.benchmarks.loss_memory                    (about a minute on one core)
    python -m tests.benchmarks.loss_memory whole 16384        (one figure: MB, seconds, gradient of the logit scale)

One of 8 processes, so with an eighth of the global batch as its own rows, a student of dim 512, two teachers of dim
768, one caption a sample. The gathered embeddings are given: nothing is communicated. Ours against plain autograd over
the same rows, and against that over the whole matrix, which a loss that is not split over processes forms; each in a
process of its own.
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from reinforce.student.compare import Gathered
from reinforce.student.losses import TeacherPair, affinity_loss
from tests.benchmarks.memory import status_kb

NUM_PROCESSES, DIM, TEACHER_DIM, NUM_TEACHERS = 8, 512, 768, 2
ROWS = {
    "ours": "ours, the rows of one process of 8",
    "plain": "plain autograd, the same rows",
    "whole": "plain autograd, all rows",
}
RUNS = [("ours", 8192), ("plain", 8192), ("whole", 8192), ("ours", 16_384), ("plain", 16_384)]


def embeddings(dim: int, seed: int, global_batch: int, num_rows: int, dtype: torch.dtype = torch.float32) -> Gathered:
    """Unit-norm rows with a common direction, as those of real models have."""
    noise = torch.randn(global_batch, dim, generator=torch.Generator().manual_seed(seed))
    rows = F.normalize(noise + 2, dim=1)
    return Gathered(rows[:num_rows].to(dtype, copy=True), rows.to(dtype))


def plain_loss(image: Gathered, text: Gathered, logit_scale: Tensor, teachers: Sequence[TeacherPair]) -> Tensor:
    """The same rows by all columns, both ways, all of it left to autograd."""

    def direction(rows: Tensor, columns: Tensor, pairs: list[tuple[Tensor, Tensor, float]]) -> Tensor:
        with torch.no_grad():
            target = torch.zeros(len(rows), len(columns))
            for u, v, scale in pairs:
                target.add_((scale * u.float() @ v.float().T).softmax(1), alpha=1 / len(pairs))
        return F.kl_div((logit_scale * rows @ columns.T).log_softmax(1), target, reduction="batchmean")

    to_texts = [(pair.image.local, pair.text.all, pair.logit_scale) for pair in teachers]
    to_images = [(pair.text.local, pair.image.all, pair.logit_scale) for pair in teachers]
    return (direction(image.local, text.all, to_texts) + direction(text.local, image.all, to_images)) / 2


def measure(which: str, global_batch: int) -> tuple[float, float, float]:
    """MB, seconds, and the gradient of the logit scale, which tells whether two losses are the same."""
    sizes = global_batch, global_batch if which == "whole" else global_batch // NUM_PROCESSES
    image, text = (embeddings(DIM, seed, *sizes) for seed in (0, 1))
    for leaf in (image.local, image.all, text.local, text.all):
        leaf.requires_grad_()
    stored = [embeddings(TEACHER_DIM, 2 + seed, *sizes, torch.float16) for seed in range(2 * NUM_TEACHERS)]
    logit_scale = torch.tensor(50.0, requires_grad=True)
    Path("/proc/self/clear_refs").write_text("5")
    before_kb, start = status_kb("VmRSS"), time.perf_counter()
    sides = [side.normalized() for side in stored]
    teachers = [TeacherPair(u, v, 100.0) for u, v in zip(sides[::2], sides[1::2], strict=True)]
    loss = (affinity_loss if which == "ours" else plain_loss)(image, text, logit_scale, teachers)
    loss.backward()  # type: ignore[no-untyped-call]
    elapsed_s = time.perf_counter() - start
    assert logit_scale.grad is not None
    return (status_kb("VmHWM") - before_kb) / 1024, elapsed_s, logit_scale.grad.item()


def main() -> None:
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        print(*measure(sys.argv[1], int(sys.argv[2])))
        return
    print("| global batch | affinity loss | peak above the embeddings | time |\n|---|---|---|---|")
    scale_grads = {}
    for which, global_batch in RUNS:
        command = [sys.executable, "-m", "tests.benchmarks.loss_memory", which, str(global_batch)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        peak_mb, elapsed_s, scale_grads[which, global_batch] = map(float, output.split())
        print(f"| {global_batch:,} | {ROWS[which]} | {peak_mb:,.0f} MB | {elapsed_s:.1f} s |", flush=True)
    for global_batch in (8192, 16_384):
        ours, plain = scale_grads["ours", global_batch], scale_grads["plain", global_batch]
        assert abs(ours / plain - 1) < 1e-3, scale_grads


if __name__ == "__main__":
    main()
