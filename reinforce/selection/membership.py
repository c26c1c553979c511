"""What is asked of a sample's name alone: whether other selections have it, and on which side of a split it is.

A split is a hash of the key, so that it is the same whatever the order and number of shards, and a key is on one side
in every shard. Costs a look at every key.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool

from reinforce.config import ConfigError
from reinforce.selection.candidates import Candidates
from reinforce.selection.criteria import Criteria, Reason, SentenceCriteria
from reinforce.selection.file import read_selection


@dataclass(frozen=True, slots=True)
class Other:
    """Another selection that an option named: its digest, and how many of its pairs are no kept sample here."""

    option: str
    uri: str
    sha256: str
    num_not_here: int


def leave_out_by_name(candidates: Candidates, criteria: Criteria | SentenceCriteria) -> list[Other]:
    """`--within`, `--without`, then `--split`. Raises `ConfigError` for a selection without a sample of the dataset."""
    others = []
    for option, uris, reason in (
        ("--within", criteria.within, Reason.NOT_WITHIN),
        ("--without", criteria.without, Reason.IN_WITHOUT),
    ):
        for uri in uris:
            noun = "sentence" if isinstance(criteria, SentenceCriteria) else "sample"
            is_named, other = named_by(candidates, uri, option, noun)
            others.append(other)
            candidates.leave_out(reason, ~is_named if reason is Reason.NOT_WITHIN else is_named)
    if criteria.split is not None:
        low, high = criteria.split
        salt = str(criteria.seed) if criteria.seed else ""
        is_inside = [is_between(key, salt, low, high) for keys in candidates.keys for key in keys.to_pylist()]
        candidates.leave_out(Reason.OUTSIDE_SPLIT, ~np.array(is_inside, bool))
    return others


def add_by_name(candidates: Candidates, criteria: Criteria) -> tuple[int, list[Other]]:
    """`--union`: puts back what these selections name. Returns how many that were."""
    num_before, others = candidates.num_in, []
    for uri in criteria.union:
        is_named, other = named_by(candidates, uri, "--union")
        others.append(other)
        candidates.put_back(np.flatnonzero(is_named))
    return candidates.num_in - num_before, others


def is_between(key: str, salt: str, low: float, high: float) -> bool:
    """Whether the hash of a key, as a part of 1, is in [low, high)."""
    hashed = int.from_bytes(hashlib.blake2b((key + salt).encode(), digest_size=8).digest(), "little")
    # Multiplied, not divided: a hash near 2**64 would be rounded to 1 and be in no split. Exact, as Python compares
    # integers with floats exactly.
    return low * 2.0**64 <= hashed < high * 2.0**64


def named_by(
    candidates: Candidates, uri: str, option: str, noun: str = "sample"
) -> tuple[Bool[np.ndarray, " samples"], Other]:
    """Which samples a selection names, or sentences. Raises `ConfigError` if there is no such `noun` here."""
    selection = read_selection(uri, option=option)
    is_named = np.zeros(len(candidates), bool)
    for shard, (stem, keys) in enumerate(zip(candidates.stems, candidates.keys, strict=True)):
        chosen = pa.array(sorted(selection.keys(stem)), pa.string())
        is_named[candidates.rows(shard)] = pc.is_in(keys, value_set=chosen).to_numpy(zero_copy_only=False)
    num_named = int(np.count_nonzero(is_named))
    if not num_named:
        example = f" (its first stem is {selection.stems[0]!r})" if len(selection) else " (it is empty)"
        raise ConfigError(f"{option} {uri}: names no kept {noun} of this dataset{example}")
    return is_named, Other(option, uri, selection.sha256, len(selection) - num_named)
