"""What a failed attempt at a shard means: for the shard, for the worker it failed on, and for the run.

Bad input stays bad, so it is not tried again. Anything else may pass, and a shard has three attempts. Many shards that
fail with one and the same error are no accident of theirs: the run stops and says so.
"""

import errno
import re
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from reinforce.shards.digests import document_text
from reinforce.shards.schema import failure_file
from reinforce.shards.source import ShardError
from reinforce.storage import StorageError, Store

MAX_ATTEMPTS = 3
"""Attempts at a shard in one run."""

MAX_ALIKE_SHARE, MAX_ALIKE = 0.05, 10
"""A run stops when more than this share of its shards, and more than so many, failed with one error."""

FIRST_PAUSE_S, LONGEST_PAUSE_S, MAX_PAUSES = 10.0, 300.0, 12
"""How long a run waits for a store that no worker reaches, and how often before it gives up: 40 minutes in all."""

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True)
class Failure:
    """One attempt that failed. `reason` is one line.

    input: the tar itself. store: a store that did not answer. disk: no room on the machine it was tried on.
    recipe: what was asked for does not fit the models or the dataset. other: anything else. lost: the worker died or
    was replaced.
    """

    kind: Literal["input", "store", "disk", "recipe", "other", "lost"]
    reason: str

    @classmethod
    def of(cls, error: Exception) -> "Failure":
        if isinstance(error, ShardError):
            return cls("input", reason_of(error))
        if isinstance(error, OSError) and error.errno in _FULL_DISK:
            return cls("disk", reason_of(error))
        if isinstance(error, StorageError):
            return cls("store", reason_of(error))
        return cls("recipe" if _is_ours(error) else "other", reason_of(error))


def _is_ours(error: BaseException) -> bool:
    return isinstance(error, ValueError) and type(error).__module__.startswith("reinforce.")


def reason_of(error: BaseException) -> str:
    """One line for people: our own errors speak for themselves, others say what they are."""
    text = " ".join(str(error).split())[:300]
    return text if _is_ours(error) else f"{type(error).__name__}: {text}"


def record_failure(output: Store, stem: str, attempts: list[str], run: str) -> None:
    """Writes `failures/<stem>.json`: the reason of each attempt, the last one first named."""
    document = {"stem": stem, "error": attempts[-1], "attempts": attempts, "run": run}
    output.put(failure_file(stem), document_text(document).encode())


class AlikeFailures:
    """Counts failed shards by what their errors have in common."""

    def __init__(self, num_shards: int) -> None:
        self._num_shards = num_shards
        self._counts: Counter[str] = Counter()

    def add(self, stem: str, reason: str) -> str | None:
        """Notes a shard that failed for good; returns why the run should stop, if it should."""
        kind = re.sub(r"\S*[0-9/]\S*", "_", reason.replace(stem, "_"))
        self._counts[kind] += 1
        count = self._counts[kind]
        if count <= max(MAX_ALIKE, MAX_ALIKE_SHARE * self._num_shards):
            return None
        return f"{count} of {self._num_shards} shards failed alike, the last one with: {reason}"


class Outage:
    """Waits for a store that no worker reaches, ever longer, rather than charge shards with it."""

    def __init__(self) -> None:
        self.end()

    def is_on(self, now_s: float) -> bool:
        """Whether nothing should be asked of the store now."""
        return now_s < self._until_s

    def begin(self, now_s: float) -> float | None:
        """The seconds to wait, 0 while it waits already; None when it has waited often enough."""
        if self.is_on(now_s):
            return 0.0
        self._num_pauses += 1
        if self._num_pauses > MAX_PAUSES:
            return None
        pause_s: float = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (self._num_pauses - 1))
        self._until_s = now_s + pause_s
        return pause_s

    def end(self) -> None:
        """Something got done: the store answers."""
        self._num_pauses = 0
        self._until_s = 0.0
