"""What is read when: pure functions of the seed, the epoch and the shard, whatever the workers.

An epoch visits every shard once, in an order of its own. The epochs' orders, one after another, form one endless
sequence of visits that is dealt to the workers of all processes in turn: nobody waits for the one with fewer samples,
and none is left out. A worker shuffles the rows of `open_shards` consecutive visits together.
"""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Int64


@dataclass(frozen=True, slots=True)
class Visit:
    """One reading of a shard: its `epoch`-th, counted from 0."""

    epoch: int
    stem: str


def permutation(length: int, *parts: int | str) -> Int64[np.ndarray, " length"]:
    """A permutation of 0..length-1 that is a function of `parts`, the same with any numpy."""
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=16).digest()
    words = np.random.Philox(key=np.frombuffer(digest, "<u8")).random_raw(length)
    return np.argsort(words, kind="stable")


def view_index(seed: int, visit: Visit, num_views: int) -> int:
    """Which view a visit reads: `num_views` epochs see each of 1..num_views once. 0 if there is only the clean one."""
    if num_views == 0:
        return 0
    cycle, place = divmod(visit.epoch, num_views)
    return 1 + int(permutation(num_views, seed, "view", cycle, visit.stem)[place])


def caption_index(seed: int, visit: Visit, role: str, num_captions: int) -> int:
    """Which of `num_captions` a visit reads, likewise. A sample that has fewer takes it modulo what it has."""
    cycle, place = divmod(visit.epoch, num_captions)
    return int(permutation(num_captions, seed, "caption", role, cycle, visit.stem)[place])


def visits(
    stems: Sequence[str], seed: int, *, worker: int, num_workers: int, start: int = 0, epochs: int | None = None
) -> Iterator[Visit]:
    """The visits of one worker from its `start`-th on; endless unless `epochs` says after how many it stops."""
    stop = None if epochs is None else epochs * len(stems)
    for position in itertools.count(worker + start * num_workers, num_workers):
        if stop is not None and position >= stop:
            return
        epoch, place = divmod(position, len(stems))
        yield Visit(epoch, stems[_order(len(stems), seed, epoch)[place]])


@lru_cache(maxsize=4)
def _order(num_shards: int, seed: int, epoch: int) -> list[int]:
    order: list[int] = permutation(num_shards, seed, "shards", epoch).tolist()
    return order
