"""What benchmarks that compare share: CPU and wall time of sides that take turns, and how one compares with another.

CPU time is that of all threads and of child processes that have ended; it says what a side costs even on a machine that
is busy with other things. A ratio is taken round by round, so that what is slow for a while is slow for both.
"""

import resource
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Seconds of one run."""

    cpu_s: float
    wall_s: float


@dataclass(frozen=True)
class Costs:
    """The runs of one side, in the order of the rounds."""

    runs: list[Cost]

    @property
    def cpu_s(self) -> float:
        return statistics.median(run.cpu_s for run in self.runs)

    @property
    def wall_s(self) -> float:
        return statistics.median(run.wall_s for run in self.runs)

    def against(self, other: "Costs") -> str:
        """How many times the other side's cost this is, as `RATIO` says."""
        pairs = list(zip(self.runs, other.runs, strict=True))
        cpu = with_range((ours.cpu_s / theirs.cpu_s for ours, theirs in pairs), digits=3)
        wall = statistics.median(ours.wall_s / theirs.wall_s for ours, theirs in pairs)
        return f"{self.cpu_s / other.cpu_s:.3f}; {cpu}; {wall:.3f}"


def with_range(values: Iterable[float], digits: int = 2) -> str:
    """Their median, and the least and the largest."""
    found = sorted(values)
    median, least, largest = (f"{value:.{digits}f}" for value in (statistics.median(found), found[0], found[-1]))
    return f"{median} ({least} to {largest})"


RATIO = "CPU of medians; CPU, median of rounds (range); wall, median of rounds"


def measure(run: Callable[[], object]) -> Cost:
    start = _cpu_s(), time.perf_counter()
    run()
    return Cost(_cpu_s() - start[0], time.perf_counter() - start[1])


def alternate(
    sides: dict[str, Callable[[], object]], num_rounds: int, *, with_warm_up: bool = True
) -> dict[str, Costs]:
    """Every side once to warm up, then in every round each in turn; a round begins with another side than the last."""
    for run in sides.values() if with_warm_up else ():
        run()
    runs: dict[str, list[Cost]] = {name: [] for name in sides}
    names = list(sides)
    for number in range(num_rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            runs[name].append(measure(sides[name]))
    return {name: Costs(of_side) for name, of_side in runs.items()}


def _cpu_s() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime
