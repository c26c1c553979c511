"""Brace patterns, as a shell expands them."""

import re
from itertools import pairwise, product

from .store import StorageError

MOST_MEMBERS = 1_000_000
"""A brace pattern that expands to more is a typing error."""


def expand_braces(pattern: str) -> list[str]:
    """`{a,b}`, `{000..127}` and `{0..10..2}`, nested and combined, in the order of a shell."""
    start = pattern.find("{")
    if start < 0:
        return [pattern]
    end, commas = _closing(pattern, start)
    body = pattern[start + 1 : end]
    if commas:
        cuts = [start, *commas, end]
        choices = [pattern[a + 1 : b] for a, b in pairwise(cuts)]
        inner = [choice for text in choices for choice in expand_braces(text)]
    else:
        inner = _range(pattern, body)
    tails = expand_braces(pattern[end + 1 :])
    if len(inner) * len(tails) > MOST_MEMBERS:
        raise StorageError(f"{pattern} means more than {MOST_MEMBERS} shards: check the range")
    return [f"{pattern[:start]}{middle}{tail}" for middle, tail in product(inner, tails)]


def _closing(pattern: str, start: int) -> tuple[int, list[int]]:
    """Where the brace at `start` closes, and its own commas."""
    depth = 0
    commas: list[int] = []
    for position in range(start, len(pattern)):
        character = pattern[position]
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return position, commas
        if character == "," and depth == 1:
            commas.append(position)
    raise StorageError(f"{pattern} has a brace that is not closed")


def _range(pattern: str, body: str) -> list[str]:
    bounds = re.fullmatch(r"([0-9]+)\.\.([0-9]+)(?:\.\.([0-9]+))?", body)
    if bounds is None or bounds[3] == "0":
        raise StorageError(f"{pattern}: braces hold a range like {{000..127}} or a list like {{a,b}}, not {{{body}}}")
    first, last, step = int(bounds[1]), int(bounds[2]), int(bounds[3] or 1)
    if abs(last - first) // step >= MOST_MEMBERS:
        raise StorageError(f"{pattern} means more than {MOST_MEMBERS} shards: check the range")
    is_padded = any(len(bound) > 1 and bound[0] == "0" for bound in (bounds[1], bounds[2]))
    width = max(len(bounds[1]), len(bounds[2])) if is_padded else 0
    numbers = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
    return [f"{number:0{width}d}" for number in numbers]
