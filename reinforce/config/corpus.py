"""The sentences without images that a build embeds."""

from typing import Literal, Self

from pydantic import Field, model_validator

from reinforce.config.base import Strict


class CorpusConfig(Strict):
    """Files of sentences without images, each of which every teacher embeds once."""

    files: str | tuple[str, ...]
    """Where they are, as `--shards` says it of tars: folders, files, patterns, `@list.txt`. `.txt`: one sentence a
    line; `.jsonl`: one JSON object a line; `.parquet`. The first two may be compressed: `.gz` or `.zst`."""
    root: str | None = None
    """What the names of the files are relative to; default: the deepest folder that holds them all."""
    column: str = Field("text", min_length=1)
    """jsonl, Parquet: the field that holds the sentence."""
    max_characters: int = Field(1000, ge=1)
    """What is longer is dropped, or cut."""
    too_long: Literal["drop", "truncate"] = "drop"

    @model_validator(mode="after")
    def _check_files(self) -> Self:
        if not self.files:
            raise ValueError("files: empty")
        return self
