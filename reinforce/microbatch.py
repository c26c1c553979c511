"""A model's micro-batch: how many rows a forward pass has, halved when the device has no memory for so many.

Passes are padded to that size, so that what a row gives does not depend on how many other rows there are. Another size
changes it by rounding, which is why a halved one is kept, and told to whoever asks.
"""

import gc
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch

_Result = TypeVar("_Result")


class MicroBatch:
    """Runs the forward passes of one model. `size` is the rows a pass has: at first `initial`, never more again."""

    def __init__(self, size: int) -> None:
        self.initial = self.size = size

    def run(
        self, rows: Sequence[int], forward: Callable[[list[int]], Iterable[_Result]], *, at_most: int | None = None
    ) -> list[_Result]:
        """One result a row, in order. `forward` is given `size` rows, or `at_most`: the last of them may be padding.

        A pass that raises `torch.OutOfMemoryError` is tried again in passes of half its rows, down to one row.
        """
        results: list[_Result] = []
        start = 0
        while start < len(rows):
            width = min(self.size, at_most or self.size)
            chunk = list(rows[start : start + width])
            try:
                found = list(forward(chunk + chunk[-1:] * (width - len(chunk))))
            except torch.OutOfMemoryError:
                if width == 1:
                    raise
                found = None
            # Not in the except clause: there the traceback still holds the tensors of the pass.
            if found is None:
                # Half of the whole, not of this pass, which may have been a small one of long texts.
                self.size = max(1, self.size // 2)
                at_most = None if at_most is None else width // 2
                _free_memory()
            else:
                results += found[: len(chunk)]
                start += len(chunk)
        return results


def _free_memory() -> None:
    gc.collect()  # a model may have left its tensors in a cycle, as an exception kept in a variable makes one
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
