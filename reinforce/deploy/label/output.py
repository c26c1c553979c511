"""What is printed: a line an image, for people or as JSON, flushed so that whoever reads the pipe has it at once."""

import json
import sys
from typing import Any

from reinforce.deploy.label.inputs import Unusable
from reinforce.deploy.label.labelling import Labelled

UNKNOWN = "unknown"


def use_utf8(as_json: bool) -> None:
    """JSON is UTF-8 whatever the locale; names that are no text are escaped instead of ending the stream."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8" if as_json else None, errors="backslashreplace")


def print_labelled(source: str | int, labelled: Labelled, as_json: bool, modality: str | None) -> None:
    """The labels of one image, best first; in JSON the modality too, if there is a choice."""
    if as_json:
        labels = [label for label, _ in labelled.scored]
        scores = [round(score, 4) for _, score in labelled.scored]
        _print_json(
            source, _read_as(modality) | {"labels": labels, "scores": scores, "ms": round(labelled.total_ms, 2)}
        )
    else:
        labels = [f"{label} {score:.2f}" for label, score in labelled.scored]
        print(f"{_one_line(source)}: {', '.join(labels) or UNKNOWN}", flush=True)


def print_unusable(unusable: Unusable, as_json: bool, modality: str | None) -> None:
    """What could not be labelled: a line of the same JSON stream, or one on standard error."""
    if as_json:
        _print_json(unusable.source, _read_as(modality) | {"error": unusable.error})
    else:
        print_note(f"{_one_line(unusable.source)}: {unusable.error}")


def print_note(text: str) -> None:
    """A line on standard error."""
    print(f"reinforce: {text}", file=sys.stderr, flush=True)


def _print_json(source: str | int, fields: dict[str, Any]) -> None:
    name = "index" if isinstance(source, int) else "path"
    print(json.dumps({name: source, **fields}, ensure_ascii=False), flush=True)


def _read_as(modality: str | None) -> dict[str, str]:
    return {} if modality is None else {"modality": modality}


def _one_line(source: str | int) -> str:
    """A path may hold any character, line ends and what moves a terminal's cursor too."""
    return f"{source}" if f"{source}".isprintable() else ascii(source)[1:-1]
