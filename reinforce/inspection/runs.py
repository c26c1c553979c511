"""What the runs of a dataset did and cost, from `runs/<run>/<part>.jsonl`. Parts are read once, a few at a time.

A run that was killed, or still goes on, has no `end`: its shards and samples count, its stage seconds are unknown.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from reinforce.inspection.figures import CostFigures, Problem, RunFigures
from reinforce.inspection.footers import noted
from reinforce.shards.dataset import Dataset
from reinforce.shards.reader import FormatError

_NUM_THREADS = 16


def read_runs(
    dataset: Dataset, run_parts: Mapping[str, Sequence[str]], problems: list[Problem]
) -> tuple[RunFigures, ...]:
    """The figures of each run, by name, which begins with the time of its start."""
    return tuple(_read_run(dataset, run, parts, problems) for run, parts in run_parts.items())


def total_cost(runs: Sequence[RunFigures]) -> CostFigures | None:
    """What all runs cost together, None if there was none."""
    if not runs:
        return None
    timed = [run for run in runs if run.stages]
    of_images = [run for run in timed if not run.num_sentences]
    of_sentences = [run for run in timed if run.num_sentences and not run.num_samples]
    num_timed, num_timed_sentences = _total(of_images, "num_samples"), _total(of_sentences, "num_sentences")
    return CostFigures(
        num_runs=len(runs),
        num_samples=_total(runs, "num_samples"),
        num_timed_samples=num_timed,
        elapsed_s=round(sum(run.elapsed_s for run in runs), 3),
        stages=_stages(timed),
        stages_per_1000=_per_1000(of_images, num_timed),
        num_sentences=_total(runs, "num_sentences"),
        num_timed_sentences=num_timed_sentences,
        stages_per_1000_sentences=_per_1000(of_sentences, num_timed_sentences),
    )


def _total(runs: Sequence[RunFigures], name: Literal["num_samples", "num_sentences"]) -> int:
    return sum(getattr(run, name) for run in runs)


def _stages(runs: Sequence[RunFigures]) -> dict[str, float]:
    """Their busy seconds, added up."""
    stages: Counter[str] = Counter()
    for run in runs:
        stages.update(run.stages)  # type: ignore[arg-type]  # seconds add up as counts do
    return {stage: round(float(total), 3) for stage, total in stages.items()}


def _per_1000(runs: Sequence[RunFigures], number: int) -> dict[str, float]:
    return {stage: 1000 * total / number for stage, total in _stages(runs).items()} if number else {}


@dataclass(slots=True)
class _Run:
    """A run as its events come. Unknown events and fields are left alone: a later version may write more."""

    start: str = ""
    last: str = ""
    end: str | None = None
    elapsed_s: float | None = None
    stages: dict[str, float] = field(default_factory=dict)
    num_shards: int = 0
    num_samples: int = 0
    num_sentences: int = 0
    failed: set[str] = field(default_factory=set)
    hardware: Mapping[str, Any] = field(default_factory=dict)
    gpus: dict[str, str | None] = field(default_factory=dict)
    """Of the workers of a cluster that are alive."""
    kinds: Counter[str] = field(default_factory=Counter)
    most_workers: int = 0

    def add(self, event: Mapping[str, Any]) -> None:
        self.last = str(event.get("time", self.last))
        self.start = self.start or self.last
        match event.get("event"):
            case "start":
                self.hardware = event.get("hardware") or {}
            case "shard":
                self.num_shards += 1
                self.num_samples += event.get("num_samples", 0)
                self.num_sentences += event.get("num_sentences", 0)
                self.failed.discard(event.get("stem", ""))
            case "failed":
                self.failed.add(event.get("stem", ""))
            case "worker":
                self.gpus[event.get("worker", "")] = event.get("gpu")
                self._count_workers()
            case "worker_lost":
                self.gpus.pop(event.get("worker", ""), None)
            case "end":
                self.end, self.elapsed_s = self.last, float(event.get("elapsed_s", 0))
                self.stages = {stage: float(spent) for stage, spent in event.get("stage_seconds", {}).items()}

    def figures(self, run: str) -> RunFigures:
        elapsed_s = _seconds_between(self.start, self.last) if self.elapsed_s is None else self.elapsed_s
        num_workers = self.most_workers or 1
        return RunFigures(
            run, self.start, self.end, elapsed_s, num_workers, self.num_shards, len(self.failed), self.num_samples,
            self.stages, self._hardware(), self.num_sentences,
        )  # fmt: skip

    def _count_workers(self) -> None:
        if len(self.gpus) > self.most_workers:
            self.most_workers = len(self.gpus)
            self.kinds = Counter(gpu or "CPU worker" for gpu in self.gpus.values())

    def _hardware(self) -> str:
        """In words: the devices of a cluster's workers, else the machine."""
        kinds = self.kinds or Counter(self.hardware.get("gpus") or ())
        if kinds:
            return ", ".join(f"{number} x {kind}" for kind, number in sorted(kinds.items()))
        machine, num_cpus = self.hardware.get("machine"), self.hardware.get("num_cpus")
        return f"{machine}, {num_cpus} CPUs" if machine and num_cpus else ""


def _read_run(dataset: Dataset, name: str, parts: Sequence[str], problems: list[Problem]) -> RunFigures:
    run = _Run()
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for start in range(0, len(parts), _NUM_THREADS):
            some = parts[start : start + _NUM_THREADS]
            for path, data in zip(some, [pool.submit(dataset.store.read, path) for path in some], strict=True):
                with noted(problems, dataset, path):
                    _add_events(run, data.result(), dataset.store.uri_of(path))
    return run.figures(name)


def _add_events(run: _Run, data: bytes, uri: str) -> None:
    for number, line in enumerate(data.splitlines(), 1):
        try:
            run.add(json.loads(line))
        except (ValueError, TypeError, AttributeError):
            raise FormatError(f"{uri}: line {number} is not an event of a run") from None


def _seconds_between(start: str, end: str) -> float:
    try:
        return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()
    except ValueError:
        return 0.0
