"""`reinforce inspect`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from reinforce.cli.errors import one_line_errors


def inspect(
    dataset: Annotated[str, typer.Argument(metavar="URI", help="A reinforced dataset.")],
    shards: Annotated[
        list[str], typer.Option(help="Where the source is now, to show images and find missing shards.")
    ] = [],  # noqa: B006
    root: Annotated[str | None, typer.Option(help="The folder that shard names are relative to, if it moved.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Every figure, as JSON.")] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Read the footers of all shards, compare the clean views of all images.")
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Write a self-contained contact sheet.")] = None,
) -> None:
    """Show what a dataset holds, what is missing, and whether it looks right."""
    with one_line_errors():
        from rich.console import Console

        from reinforce.inspection.stats import inspect_dataset
        from reinforce.inspection.table import render_table

        figures = inspect_dataset(dataset, shards=shards, root=root, is_full=full)
        if as_json:
            print(json.dumps(figures.to_json(), indent=2, ensure_ascii=False))
        else:
            Console().print(render_table(figures))
        if html is not None:
            from reinforce.inspection.report import write_contact_sheet

            write_contact_sheet(dataset, html, figures, root=root)
            print(f"contact sheet: {html}", file=sys.stderr)
