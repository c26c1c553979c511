"""What the steps of a run took and gave: averages between two rows of its journal, and where its time went in all."""

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from reinforce.config import DataConfig
from reinforce.student.batch import Batch

WAITING_SHARE = 0.1
"""Of the time: whoever waits longer for data is limited by the readers. Less is what batches of unequal work cost."""


class Meter:
    """Averages over the steps since the figures were last asked for: the loss and its terms, the rate, the waiting."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._since_s = time.perf_counter()
        self._recent, self._before = _Time(), _Time()
        self._first_wait_s: float | None = None
        self._sums: dict[str, Any] = {}

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Times how long the data kept a step waiting."""
        before_s = time.perf_counter()
        yield
        waited_s = time.perf_counter() - before_s
        self._recent.waited_s += waited_s
        if self._first_wait_s is None:
            self._first_wait_s = waited_s

    def add(self, terms: dict[str, Tensor], batch: Batch) -> None:
        """Adds a step; its values stay on their device until the figures are asked for."""
        self._recent.num_steps += 1
        self._recent.num_rows += len(batch)
        self._recent.reader_s.update(batch.reader_s)
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach()

    def figures(self) -> dict[str, Any]:
        """The averages; starts anew."""
        recent, now_s = self._recent, time.perf_counter()
        recent.elapsed_s = now_s - self._since_s
        figures: dict[str, Any] = {name: float(total) / recent.num_steps for name, total in self._sums.items()}
        figures["samples_per_s"] = recent.num_steps * self._batch_size / recent.elapsed_s
        figures["wait_share"] = recent.waited_s / recent.elapsed_s
        figures["reader_ms"] = recent.reader_ms
        self._before.add(recent)
        self._since_s, self._recent, self._sums = now_s, _Time(), {}
        return figures

    def limit(self, data: DataConfig, *, may_share_decoding: bool = True) -> str:
        """A line on what the run was limited by, and what of `data` would change that, once figures were asked for.

        `may_share_decoding`: whether the run's loss allows `views_per_decode`.
        The wait for the first batch is left out: it is that for the first shards, however long the run is.
        """
        run = self._before
        first_wait_s = self._first_wait_s or 0.0
        share = (run.waited_s - first_wait_s) / (run.elapsed_s - first_wait_s)
        total_ms = sum(run.reader_ms.values())
        line = f"waiting for data {share:.0%}: "
        if share < WAITING_SHARE:
            line += "the model is the limit"
        elif run.reader_s["mine"] > sum(run.reader_s.values()) / 2:
            line += "mining is the limit, which embeds every sample for each epoch; select fewer"
        else:
            cores = len(os.sched_getaffinity(0))
            line += f"the readers are the limit; raise student.data.workers (now {data.workers}, of {cores} cores)"
            if run.reader_s["read"] + run.reader_s["decode"] > sum(run.reader_s.values()) / 2:
                line += f" or views_per_decode (now {data.views_per_decode})," if may_share_decoding else ""
                line += " or use smaller images"
        split = ", ".join(f"{part} {ms:.2f}" for part, ms in run.reader_ms.items())
        return f"{line}. A sample takes a reader {total_ms:.2f} ms: {split}"


class _Time:
    """Where the time of some steps went."""

    def __init__(self) -> None:
        self.num_steps = 0
        self.num_rows = 0
        self.elapsed_s = 0.0
        self.waited_s = 0.0
        self.reader_s: Counter[str] = Counter()

    def add(self, other: "_Time") -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    @property
    def reader_ms(self) -> dict[str, float]:
        """Milliseconds a row that its reader spent, by part."""
        return {part: 1000 * seconds / self.num_rows for part, seconds in self.reader_s.items()}
