"""`reinforce demo`: generated scenes, reinforced and inspected on this machine, offline, through the ordinary paths."""

import shutil
from pathlib import Path

from rich.console import Console

from reinforce.config import ConfigError
from reinforce.inspection.stats import inspect_dataset
from reinforce.inspection.table import render_table
from reinforce.runners import build, describe

IMAGES_PER_SHARD = 500
RECIPE = "demo"


def run_demo(output: Path, num_images: int, console: Console | None = None) -> int:
    """Writes `OUTPUT/scenes` unless they are there, builds `OUTPUT/reinforced` or goes on with it, and inspects it.

    Returns the exit status of the build. Raises `ConfigError` if the scenes that are there are not `num_images`.
    """
    console = console or Console()
    scenes, reinforced = output / "scenes", output / "reinforced"
    _write_scenes(scenes, num_images, console)
    _command(console, f"reinforce build --shards {scenes} --recipe {RECIPE} --output {reinforced}")
    summary = build(str(scenes), str(reinforced), RECIPE, console=console)
    console.print(describe(summary), markup=False, highlight=False, soft_wrap=True)
    _command(console, f"reinforce inspect {reinforced}")
    console.print(render_table(inspect_dataset(str(reinforced), shards=[str(scenes)])))
    console.print(
        f"To see the samples: reinforce inspect {reinforced} --html {output / 'samples.html'}", soft_wrap=True
    )
    return 1 if summary.failed else 0


def _command(console: Console, command: str) -> None:
    console.print(f"\n{command}", style="bold", markup=False, highlight=False, soft_wrap=True)


def _write_scenes(scenes: Path, num_images: int, console: Console) -> None:
    from reinforce.demo.shards import write_scenes

    num_shards = -(-num_images // IMAGES_PER_SHARD)
    if scenes.exists():
        found = len(list(scenes.glob("*.tar")))
        if found != num_shards:
            raise ConfigError(f"{scenes} holds {found} shards, not the {num_shards} of this demo; remove it")
        console.print(f"{scenes}: {num_shards} shards are there already")
        return
    # Under another name until all are there, so that a demo cut short does not leave half of them behind.
    partial = scenes.with_name(f"{scenes.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    write_scenes(partial, num_images=num_images, images_per_shard=IMAGES_PER_SHARD)
    partial.rename(scenes)
    console.print(f"{scenes}: wrote {num_images:,} captioned scenes into {num_shards} shards")
