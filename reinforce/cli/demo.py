"""`reinforce demo`."""

from pathlib import Path
from typing import Annotated

import typer

from reinforce.cli.errors import one_line_errors


def demo(
    output: Annotated[Path, typer.Option(help="Folder for the scenes, the dataset and the students.")] = Path("demo"),
    num_images: Annotated[int, typer.Option(min=8, help="Scenes to generate.")] = 3000,
    depth: Annotated[
        bool, typer.Option("--depth", help="Only write scenes with depth images, for recipe demo_edgevl.")
    ] = False,
    unpaired: Annotated[
        bool,
        typer.Option("--unpaired", help="Only write scenes, and sentences about other ones, for recipe demo_dime_fm."),
    ] = False,
) -> None:
    """Generate captioned scenes, reinforce them, train two students from that and compare them. Offline."""
    with one_line_errors():
        from reinforce.demo.run import run_demo, write_depth_scenes, write_unpaired_scenes

        if depth or unpaired:
            if depth:
                write_depth_scenes(output, num_images)
            if unpaired:
                write_unpaired_scenes(output, num_images)
            return
        raise typer.Exit(run_demo(output, num_images))
