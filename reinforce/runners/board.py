"""The figures of a cluster for the live table: who works, what is leased, how busy devices are, and why not more."""

import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from reinforce.progress import Progress
from reinforce.runners.crew import Crew
from reinforce.runners.leases import Leases

_WAIT_INTERVAL_S = 30.0
_BUSY_SHARE = 0.85


class Board:
    """Gathers what workers report and hands it to the progress display."""

    def __init__(self, progress: Progress, crew: Crew, leases: Leases) -> None:
        self._progress, self._crew, self._leases = progress, crew, leases
        self._seconds: dict[str, dict[str, float]] = {}
        self._worked_s = 0.0
        self._shown_at = self._told_at = time.monotonic()

    def show(self, nodes: list[dict[str, Any]]) -> None:
        """Shows the state of the run; says so when it waits for a worker."""
        now = time.monotonic()
        ready = self._crew.ready
        for hand in ready:
            self._seconds[hand.name] = hand.status.seconds
            self._worked_s += now - self._shown_at
        self._shown_at = now
        if ready or any(hand.placed_at is not None for hand in self._crew.hands.values()):
            self._told_at = now
        elif now - self._told_at >= _WAIT_INTERVAL_S:
            self._told_at = now
            self._progress.line(f"waiting for a worker: {len(nodes)} nodes, none has {self._crew.needs} free")
        seconds: defaultdict[str, float] = defaultdict(float)
        for spent in self._seconds.values():
            for stage, value in spent.items():
                seconds[stage] += value
        rows = {
            "workers": self._workers(),
            "leased": str(self._leases.num_open - self._leases.num_waiting),
            "devices busy": f"{100 * self._busy_share(seconds):.0f} %" if self._worked_s else "",
            "bottleneck": self._bottleneck(seconds),
        }
        self._progress.cluster(rows, [hand.status.report for hand in ready], seconds)

    def _workers(self) -> str:
        ready = len(self._crew.ready)
        starting = len(self._crew.hands) - ready
        lost = self._crew.num_lost
        return f"{ready}" + f", {starting} starting" * bool(starting) + f", {lost} lost" * bool(lost)

    def _busy_share(self, seconds: Mapping[str, float]) -> float:
        return (seconds["captioner"] + seconds["teachers"]) / max(1e-9, self._worked_s)

    def _bottleneck(self, seconds: Mapping[str, float]) -> str:
        """One sentence: what more of would make the run faster."""
        worked = self._worked_s
        if not worked or not self._progress.total.num_samples:
            return ""
        if self._busy_share(seconds) >= _BUSY_SHARE:
            return "the models: more or faster devices would help"
        needs = self._crew.needs
        if (seconds["decode"] + seconds["render"]) / needs.num_prepare / worked >= _BUSY_SHARE:
            return f"decode and render: raise build.ray.num_cpus above {needs.num_cpus:g}"
        if seconds["fetch"] / worked >= _BUSY_SHARE:
            return "fetching source shards: more bandwidth, or workers nearer to the store"
        if seconds["write"] / worked >= 1 - _BUSY_SHARE:
            return "writing and committing: a store nearer to the workers"
        return "none stands out"
