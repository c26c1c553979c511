"""What became of each shard of a run: shown, logged, and left in `failures/`. The same for every runner."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from pydantic import BaseModel

from reinforce.progress import Progress, RunLog, hardware
from reinforce.runners.failures import AlikeFailures, Failure, record_failure
from reinforce.runners.summary import BuildSummary
from reinforce.shard_report import ShardReport
from reinforce.shards.schema import failure_file
from reinforce.storage import StorageError, Store


class Ledger:
    """Takes note of every attempt. `stopped` says why the run should end early, None while it should not.

    `failed_before` are the stems that have a file in `failures/`, removed after a success.
    """

    def __init__(self, output: Store, progress: Progress, *, num_shards: int, failed_before: set[str]) -> None:
        self.log = RunLog(output)
        self.progress = progress
        self.failed: dict[str, list[str]] = {}
        self.stopped: str | None = None
        self._output = output
        self._num_shards = num_shards
        self._alike = AlikeFailures(num_shards)
        self._failed_before = failed_before

    @contextmanager
    def open(self, config: BaseModel, **fields: Any) -> Iterator[None]:
        """Opens and closes the run's log, whatever ends the run."""
        recipe = config.model_dump(mode="json")
        self.log.event("start", num_shards=self._num_shards, recipe=recipe, **hardware(), **fields)
        try:
            yield
        except BaseException:
            with suppress(OSError):  # what ended the run is the news, not that its log has no room either
                self._close()
            raise
        with self._told():
            self._close()

    def done(self, report: ShardReport, num_bytes: int, **where: Any) -> None:
        """A shard is complete."""
        self.progress.shard(report, num_bytes)
        self.log.event("shard", **report.to_json(), **where)
        if report.stem in self._failed_before:
            with self._told():
                self._output.delete(failure_file(report.stem))

    def attempt(self, stem: str, failure: Failure, number: int, **where: Any) -> None:
        """An attempt at a shard failed; its `number` is 0 if the shard is not charged with it."""
        self.progress.attempt_failed(stem)
        self.log.event("failed", stem=stem, error=failure.reason, **where)
        place = "".join(f", {name} {value}" for name, value in where.items())
        attempt = f"attempt {number}" if number else "not charged"
        self.progress.line(f"shard {stem} failed ({attempt}{place}): {failure.reason}")

    def gave_up(self, stem: str, reasons: Sequence[str]) -> None:
        """A shard will not be tried again in this run."""
        self.progress.failed()
        self.failed[stem] = list(reasons)
        with self._told():
            record_failure(self._output, stem, self.failed[stem], self.log.run)
        self.stopped = self.stopped or self._alike.add(stem, reasons[-1])

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What is written for people only: that it could not be is told, and ends no run."""
        try:
            yield
        except StorageError as error:
            self.progress.line(str(error))

    def summary(self, num_left: int) -> BuildSummary:
        reasons = {stem: attempts[-1] for stem, attempts in self.failed.items()}
        total, elapsed_s = self.progress.total, self.progress.elapsed_s
        return BuildSummary(
            self._num_shards, 0, total, elapsed_s, reasons, num_left if self.stopped else 0, self.stopped
        )

    def _close(self) -> None:
        seconds = {stage: round(spent, 3) for stage, spent in self.progress.times.seconds.items()}
        elapsed_s = round(self.progress.elapsed_s, 3)
        self.log.event("end", elapsed_s=elapsed_s, stage_seconds=seconds, **self.progress.total.to_json())
        self.log.flush()
