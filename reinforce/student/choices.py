"""What is read when: pure functions of the seed, the visit and the shard, whatever the workers.

A pass visits every shard once, in an order of its own. The passes' orders, one after another, form one endless
sequence of visits that is dealt to the workers of all processes in turn: nobody waits for the one with fewer samples,
and none is left out. A worker shuffles the rows of `open_shards` consecutive visits together.

A visit takes `views_per_decode` consecutive places of the shard's endless walks through its views and captions.
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
    """The `number`-th visit to a shard, counted from 0: that of the pass of this number."""

    number: int
    stem: str


def permutation(length: int, *parts: int | str) -> Int64[np.ndarray, " length"]:
    """A permutation of 0..length-1 that is a function of `parts`, the same with any numpy."""
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=16).digest()
    words = np.random.Philox(key=np.frombuffer(digest, "<u8")).random_raw(length)
    return np.argsort(words, kind="stable")


def view_index(seed: int, stem: str, place: int, num_views: int) -> int:
    """Which view is at a place of the walk: `num_views` places from a multiple of it on hold each of 1..num_views once.

    0 if there is only the clean one.
    """
    if num_views == 0:
        return 0
    cycle, step = divmod(place, num_views)
    return 1 + int(permutation(num_views, seed, "view", cycle, stem)[step])


def caption_index(seed: int, stem: str, place: int, role: str, num_captions: int) -> int:
    """Which of `num_captions` is there, likewise. A sample that has fewer takes it modulo what it has."""
    cycle, step = divmod(place, num_captions)
    return int(permutation(num_captions, seed, "caption", role, cycle, stem)[step])


def visits(
    stems: Sequence[str],
    seed: int,
    *,
    worker: int,
    num_workers: int,
    start: int = 0,
    passes: int | None = None,
    kind: str = "shards",
) -> Iterator[Visit]:
    """The visits of one worker from its `start`-th on; endless unless `passes` says after how many it stops.

    Each `kind` of file has an order of its own.
    """
    stop = None if passes is None else passes * len(stems)
    for position in itertools.count(worker + start * num_workers, num_workers):
        if stop is not None and position >= stop:
            return
        number, place = divmod(position, len(stems))
        yield Visit(number, stems[_order(len(stems), seed, kind, number)[place]])


@lru_cache(maxsize=4)
def _order(num_shards: int, seed: int, kind: str, number: int) -> list[int]:
    order: list[int] = permutation(num_shards, seed, kind, number).tolist()
    return order
