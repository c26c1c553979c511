"""`reinforce build`."""

from typing import Annotated, Any

import typer

from reinforce.cli.errors import one_line_errors
from reinforce.cli.options import Overrides, ShardUris
from reinforce.config.base import ConfigError


def build(
    output: Annotated[str, typer.Option(help="Where the dataset goes, or is already: a folder or a URI.")],
    recipe: Annotated[str, typer.Option(help="A recipe's NAME (demo, cifar10, mobileclip, ...) or FILE.")],
    shards: ShardUris = [],  # noqa: B006
    more_shards: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    root: Annotated[str | None, typer.Option(help="The folder that shard names are relative to.")] = None,
    overrides: Overrides = [],  # noqa: B006
    select: Annotated[str | None, typer.Option(help="A Parquet of (stem, key): only these samples.")] = None,
    limit_shards: Annotated[int | None, typer.Option(min=1, help="Only the first N shards.")] = None,
    limit_samples: Annotated[int | None, typer.Option(min=1, help="Only the first N keys of each shard.")] = None,
    retry_failed: Annotated[bool, typer.Option(help="Only the shards that failed before.")] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDRESS]",
            help="Build on a Ray cluster: auto (the one this runs on), HOST:PORT, or local (start one here). "
            "Without ADDRESS: auto if there is one, else local.",
        ),
    ] = None,
    max_workers: Annotated[int | None, typer.Option(min=1, help="With --ray: at most N workers.")] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Try a few samples, say what it would take, write nothing.")
    ] = False,
    price_per_hour: Annotated[float | None, typer.Option(min=0, help="With --plan: what one worker costs.")] = None,
) -> None:
    """Run teachers and captioner over source shards once and store what they say. Run again to resume."""
    with one_line_errors():
        from reinforce.config import load_recipe

        # Before anything heavy is imported: a mistake in the recipe is told at once.
        parsed = load_recipe(recipe, overrides)
        if price_per_hour is not None and not plan:
            raise ConfigError("--price-per-hour: goes with --plan")
        if max_workers is not None and ray is None and not plan:
            raise ConfigError("--max-workers: goes with --ray or --plan")
        from rich.console import Console

        from reinforce import runners

        # A brace pattern that the shell expanded arrives as one option value and many arguments.
        all_shards = [*shards, *(more_shards or [])]
        options: dict[str, Any] = {
            "root": root,
            "select": select,
            "limit_shards": limit_shards,
            "limit_samples": limit_samples,
            "retry_failed": retry_failed,
            "ray": ray,
            "max_workers": max_workers,
            "console": Console(stderr=True),
        }
        if plan:
            forecast = runners.plan_build(all_shards, output, parsed, price_per_hour=price_per_hour, **options)
            print(runners.describe_forecast(forecast))
            return
        summary = runners.build(all_shards, output, parsed, **options)
        print(runners.describe(summary))
        if summary.failed or summary.stopped:
            raise typer.Exit(1)
