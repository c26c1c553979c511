"""Figures as people read them."""

from collections import Counter


def format_counts(counts: Counter[str]) -> str:
    """Counts by name, the zeros left out."""
    return ", ".join(f"{name} {count:,}" for name, count in sorted((+counts).items()))


def format_count(number: int, noun: str) -> str:
    """`1 file`, `2,000 files`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def format_seconds(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
