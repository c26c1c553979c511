"""`reinforce select`."""

from typing import Annotated

import typer

from reinforce.cli.errors import one_line_errors


def select(
    dataset: Annotated[str, typer.Argument(metavar="URI", help="A reinforced dataset.")],
    output: Annotated[str, typer.Option(help="The Parquet of (stem, key) to write; --select of other commands.")],
    split: Annotated[str, typer.Option(help="LOW:HIGH, parts of 1: 0:0.9 to train on, 0.9:1 to validate with.")],
) -> None:
    """Pick samples of a dataset: a part of them by a hash of their keys, the same part every time."""
    with one_line_errors():
        from reinforce.selection import parse_split, select_split

        print(f"{output}: {select_split(dataset, output, *parse_split(split)):,} samples")
