"""Rows of one process against the columns of all, a block of rows at a time.

The gradient of a block is taken while the block is there, so that backward needs only what has the size of the
embeddings.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK_ROWS = 256
"""Rows compared at a time: enough to keep a GPU busy, and 16 MB a matrix at 16,384 columns."""

Compare = Callable[[slice, Tensor], tuple[Tensor, Tensor]]
"""(rows, their logits [rows, columns]) -> the sum of the rows' losses and its gradient by the logits, which may be
overwritten."""


@dataclass(frozen=True)
class Gathered:
    """The rows of this process and those of all processes, in the order of the ranks."""

    local: Tensor
    all: Tensor
    first: int = 0
    """Where the local rows begin among all."""

    def normalized(self) -> "Gathered":
        """The rows in fp32 with unit norm; carries no gradient to other processes."""
        rows = unit_norm(self.all)
        return Gathered(rows[self.first : self.first + len(self.local)], rows, self.first)


def gather(local: Tensor) -> Gathered:
    """The rows of all processes, each of which gives equally many; no communication if there is one process.

    Backward sums each row's gradient over the processes, as the gradient of a sum of their losses does.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return Gathered(local, local)
    rows: Tensor = _AllGather.apply(local)  # type: ignore[no-untyped-call]
    return Gathered(local, rows, dist.get_rank() * len(local))


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        rows = local.new_empty(dist.get_world_size() * len(local), *local.shape[1:])
        dist.all_gather_into_tensor(rows, local.contiguous())
        return rows

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        local = grad.new_empty(len(grad) // dist.get_world_size(), *grad.shape[1:])
        dist.reduce_scatter_tensor(local, grad.contiguous())
        return local


def compare_rows(
    rows: Float[Tensor, "batch dim"],
    columns: Float[Tensor, "global dim"],
    logit_scale: Float[Tensor, ""],
    compare: Compare,
    block_rows: int = BLOCK_ROWS,
) -> Float[Tensor, ""]:
    """The mean over the rows of what `compare` says of their logits, `logit_scale * rows @ columns.T`."""
    with torch.autocast(rows.device.type, enabled=False):
        inputs = (rows.float(), columns.float(), logit_scale.float())
        loss: Tensor = _CompareRows.apply(*inputs, compare, block_rows)  # type: ignore[no-untyped-call]
    return loss


class _CompareRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, columns: Tensor, logit_scale: Tensor, compare: Compare, block_rows: int
    ) -> Tensor:
        needs_rows, needs_columns, needs_scale = ctx.needs_input_grad[:3]
        loss, grad_scale = rows.new_zeros(()), torch.zeros_like(logit_scale)
        grad_rows = torch.empty_like(rows) if needs_rows else None
        grad_columns = torch.zeros_like(columns) if needs_columns else None
        for start in range(0, len(rows), block_rows):
            block = slice(start, min(start + block_rows, len(rows)))
            scaled = rows[block] * logit_scale
            block_loss, grad_logits = compare(block, scaled @ columns.T)
            loss += block_loss
            if grad_columns is not None:
                grad_columns.addmm_(grad_logits.T, scaled)
            if needs_rows or needs_scale:
                grad_scaled = grad_logits @ columns
                grad_scale += (grad_scaled * rows[block]).sum()
                if grad_rows is not None:
                    torch.mul(grad_scaled, logit_scale, out=grad_rows[block])
        grads = (grad_rows, grad_columns, grad_scale if needs_scale else None)
        ctx.save_for_backward(*(None if grad is None else grad.div_(len(rows)) for grad in grads))
        return loss / len(rows)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        return *(None if grad is None else grad * grad_loss for grad in ctx.saved_tensors), None, None


def unit_norm(rows: Tensor) -> Tensor:
    """Rows in fp32 divided by their norm."""
    return F.normalize(rows.float(), dim=-1)
