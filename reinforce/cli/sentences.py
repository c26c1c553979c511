"""`reinforce select --corpus`."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from reinforce.config.base import ConfigError


def select_by_images(uri: str, output: str, asked: Mapping[str, Any], teachers: Sequence[str], *, as_json: bool) -> str:
    """Picks sentences; returns what is printed. `asked` are the fields of `SentenceCriteria` but for the teacher."""
    if asked["nearest"] is None:
        raise ConfigError("--corpus: needs --nearest, how many sentences are near an image, such as 10")
    if len(teachers) > 1:
        raise ConfigError(f"--teacher {teachers[1]}: images and sentences meet in the space of one teacher; give one")
    from reinforce.selection import SentenceCriteria, select_sentences
    from reinforce.selection.sentence_outcome import describe_sentences
    from reinforce.shards.dataset import open_dataset

    criteria = SentenceCriteria(**asked, teacher=next(iter(teachers), None))
    outcome = select_sentences(open_dataset(uri), output, criteria)
    return json.dumps(outcome.to_json(), indent=2, ensure_ascii=False) if as_json else describe_sentences(outcome)


def refuse_given(options: Mapping[str, Any], why: str) -> None:
    """Refuses the first of these options, by parameter name, that has a value."""
    for name, value in options.items():
        if value not in (None, ()):
            raise ConfigError(
                f"--{name.replace('_', '-')} {value if isinstance(value, str | int | float) else value[0]}: {why}"
            )
