"""`reinforce inspect`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from reinforce.cli.errors import one_line_errors
from reinforce.cli.verify import VerifyOptions, verify


def inspect(
    dataset: Annotated[str, typer.Argument(metavar="URI", help="A reinforced dataset.")],
    shards: Annotated[
        list[str],
        typer.Option(help="Where the source is now, to show images and find missing shards; or which to verify."),
    ] = [],  # noqa: B006
    root: Annotated[str | None, typer.Option(help="The folder that shard names are relative to, if it moved.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Every figure, as JSON.")] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Read the footers of all shards, compare the clean views of all images.")
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Write a self-contained page: charts, and samples.")] = None,
    is_verified: Annotated[
        bool, typer.Option("--verify", help="Read everything, and list each fault by file, row and column.")
    ] = False,
    recompute: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="With --verify: embed about N random cells again and compare."),
    ] = None,
    no_source: Annotated[bool, typer.Option("--no-source", help="With --verify: leave the source out.")] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="With --recompute: which cells.")] = None,
    teacher: Annotated[
        list[str], typer.Option(metavar="NAME=PATH", help="With --recompute: where a teacher is that has moved.")
    ] = [],  # noqa: B006
    corpus_root: Annotated[
        list[str],
        typer.Option(metavar="NAME=URI", help="With --verify: where the files of a corpus are, if they moved."),
    ] = [],  # noqa: B006
) -> None:
    """Show what a dataset holds, what is missing, and whether it looks right; or verify all of it."""
    options = VerifyOptions(recompute, no_source, seed, teacher, corpus_root)
    with one_line_errors():
        if is_verified or options.first_given:
            _check_verify(is_verified, options, html)
            if not verify(dataset, shards=shards, root=root, as_json=as_json, options=options):
                raise typer.Exit(1)
            return
        from rich.console import Console

        from reinforce.inspection.stats import inspect_dataset
        from reinforce.inspection.table import render_table

        figures = inspect_dataset(dataset, shards=shards, root=root, is_full=full)
        if as_json:
            print(json.dumps(figures.to_json(), indent=2, ensure_ascii=False))
        else:
            Console().print(render_table(figures))
        if html is not None:
            from reinforce.inspection.report import write_report

            for fault in write_report(dataset, html, figures, root=root):
                print(f"not shown: {fault}", file=sys.stderr)
            print(f"report: {html}", file=sys.stderr)


def _check_verify(is_verified: bool, options: VerifyOptions, html: Path | None) -> None:
    from reinforce.config import ConfigError

    if not is_verified:
        raise ConfigError(f"{options.first_given} belongs to --verify")
    if html is not None:
        raise ConfigError("--html shows figures, --verify is a report of its own: ask for one of them")
