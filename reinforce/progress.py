"""What a run shows and what it leaves behind: a live table on a terminal, plain lines elsewhere, `runs/` always."""

import json
import os
import platform
import secrets
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from reinforce.formatting import format_counts, format_seconds
from reinforce.plan import software
from reinforce.prefetch import StageTimes
from reinforce.shard_report import ShardReport
from reinforce.shards.digests import sealed_lines
from reinforce.storage import StorageError, Store

_PLAIN_INTERVAL_S = 10.0
_PART_INTERVAL_S = 60.0
_RECENT_S = 30.0
_STAGES = ("fetch", "parse", "decode", "render", "captioner", "tokenize", "teachers", "write")


class Progress:
    """Counts a run's work and shows it. Use as a context manager."""

    def __init__(self, num_shards: int, num_bytes: int, times: StageTimes, console: Console) -> None:
        self.times = times
        self.console = console
        self.num_shards, self.num_bytes = num_shards, num_bytes
        self.done_shards = self.done_bytes = self.num_failed = 0
        self.total = ShardReport("")
        self._current: dict[str, ShardReport] = {}
        self._rows: dict[str, str] = {}
        self._start = self._last_line = time.monotonic()
        self._recent = deque([(self._start, 0)])
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def __enter__(self) -> "Progress":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._start

    def batch(self, report: ShardReport) -> None:
        """Notes the growing report of a shard: of the one at hand, beside one that is being committed."""
        self._current[report.stem] = report
        self._show()

    def shard(self, report: ShardReport, num_bytes: int) -> None:
        """Notes a finished shard."""
        self.total.add(report)
        self._current.pop(report.stem, None)
        self.done_shards += 1
        self.done_bytes += num_bytes
        self._show()

    def attempt_failed(self, stem: str) -> None:
        """Forgets what a shard had given so far."""
        self._current.pop(stem, None)

    def failed(self) -> None:
        """Notes a shard given up."""
        self.num_failed += 1
        self._show()

    def cluster(self, rows: dict[str, str], reports: Iterable[ShardReport], seconds: Mapping[str, float]) -> None:
        """Notes the state of a cluster: rows to show, the growing reports of all workers, their stage seconds."""
        self._rows, self._current = rows, {str(number): report for number, report in enumerate(reports)}
        self.times.seconds = defaultdict(float, seconds)
        self._show()

    def line(self, text: str) -> None:
        """A message of its own, above the table."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _show(self) -> None:
        if self._live:
            self._live.update(self._table())
        elif time.monotonic() - self._last_line >= _PLAIN_INTERVAL_S:
            self._last_line = time.monotonic()
            self.line(", ".join(f"{name} {value}" for name, value in self._figures().items() if value))

    def _table(self) -> Table:
        table = Table(show_header=False, box=None)
        for name, value in self._figures().items():
            if value:
                table.add_row(name, value)
        return table

    def _figures(self) -> dict[str, str]:
        total = ShardReport("")
        for report in (self.total, *self._current.values()):
            total.add(report)
        now_s = self._rate_now(total.num_samples)
        elapsed_s = max(self.elapsed_s, 1e-9)
        eta_s = elapsed_s * (self.num_bytes - self.done_bytes) / self.done_bytes if self.done_bytes else None
        has_images = bool(total.num_samples or not total.num_sentences)
        samples = f"{total.num_samples:,} ({total.num_samples / elapsed_s:,.0f}/s, now {now_s:,.0f}/s)"
        return {
            "shards": f"{self.done_shards}/{self.num_shards}"
            + (f" ({self.num_failed} failed)" * bool(self.num_failed)),
            "samples": samples * has_images,
            "views": f"{total.num_views:,} ({total.num_views / elapsed_s:,.0f}/s)" * has_images,
            "sentences": f"{total.num_sentences:,} ({total.num_sentences / elapsed_s:,.0f}/s)"
            * bool(total.num_sentences),
            "left": "" if eta_s is None else format_seconds(eta_s),
            "drops": format_counts(total.drops),
            **self._rows,
            "time": format_stages(self.times),
        }

    def _rate_now(self, num_samples: int) -> float:
        """Samples a second over the last half minute."""
        now = time.monotonic()
        self._recent.append((now, num_samples))
        while len(self._recent) > 2 and now - self._recent[0][0] > _RECENT_S:
            self._recent.popleft()
        start, before = self._recent[0]
        return max(0, num_samples - before) / max(now - start, 1e-9)


class RunLog:
    """Writes `runs/<run>/<part>.jsonl`: one object of events every minute and at the end."""

    def __init__(self, output: Store) -> None:
        self.run = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(3)}"
        self._output = output
        self._events: list[dict[str, Any]] = []
        self._num_parts = 0
        self._last_part = time.monotonic()

    def event(self, kind: str, **fields: Any) -> None:
        """Notes what happened; published within a minute and at `flush`, later if the store does not answer."""
        self._events.append({"event": kind, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **fields})
        if time.monotonic() - self._last_part >= _PART_INTERVAL_S:
            self._last_part = time.monotonic()
            with suppress(StorageError):
                self.flush()

    def flush(self) -> None:
        """Publishes what has been noted since the last part."""
        if self._events:
            text = "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in self._events)
            self._output.put_if_absent(f"runs/{self.run}/{self._num_parts:05d}.jsonl", sealed_lines(text))
            self._events.clear()
            self._num_parts += 1
        self._last_part = time.monotonic()


def hardware() -> dict[str, Any]:
    """What the run ran on and with."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    machine = {"machine": platform.machine(), "num_cpus": os.cpu_count(), "gpus": gpus}
    return {"hardware": machine, "software": software()}


def format_stages(times: StageTimes) -> str:
    """The time split: busy seconds of every stage (CPU stages overlap the models, so they may add up to more)."""
    return ", ".join(f"{stage} {times.seconds[stage]:.0f} s" for stage in _STAGES if times.seconds[stage] >= 0.5)
