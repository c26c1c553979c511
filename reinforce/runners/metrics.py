"""What a worker tells Ray's metrics, and so the usual dashboards: its shards, its samples, the seconds of its stages.

`rate(ray_reinforce_stage_seconds_total{stage="teachers"}[1m])` is how busy a device is with its teachers.
"""

from collections import Counter as Counts

from ray.util.metrics import Counter

from reinforce.runners.worker import Status


class Metrics:
    """Counters of one worker, moved on by what its status says."""

    def __init__(self) -> None:
        self._shards = Counter("reinforce_shards", description="Shards built.")
        self._samples = Counter("reinforce_samples", description="Source samples seen.")
        self._drops = Counter("reinforce_drops", description="Samples dropped, by reason.", tag_keys=("reason",))
        self._seconds = Counter(
            "reinforce_stage_seconds", description="Busy seconds, by stage, added up over threads.", tag_keys=("stage",)
        )
        self._told: Counts[tuple[str, str]] = Counts()

    def update(self, status: Status) -> None:
        """Adds what is new since the last time."""
        totals = status.totals
        self._add(self._shards, "shards", "", status.num_shards)
        self._add(self._samples, "samples", "", totals.num_samples)
        for reason, count in totals.drops.items():
            self._add(self._drops, "reason", str(reason), count)
        for stage, seconds in status.seconds.items():
            self._add(self._seconds, "stage", stage, seconds)

    def _add(self, counter: Counter, kind: str, name: str, value: float) -> None:
        new = value - self._told[kind, name]
        if new > 0:
            counter.inc(new, tags={kind: name} if name else None)
            self._told[kind, name] += new  # type: ignore[assignment]
