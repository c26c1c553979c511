"""Options that several commands share."""

from typing import Annotated

import typer

ShardUris = Annotated[
    list[str],
    typer.Option(
        help="Source tars: a folder or prefix, a quoted brace pattern or glob, @list.txt; s3://, gs://, az://."
    ),
]
Overrides = Annotated[list[str], typer.Option("--set", help="Override a recipe field: build.views.count=3.")]
