"""`reinforce label`, as far as `reinforce --help` lists it: what it does is `deploy.label`'s, without typer."""

import typer


def label(context: typer.Context) -> None:
    """Label images with an exported model: files, folders, or a stream of JPEGs."""
    from reinforce.deploy.label.command import main

    raise typer.Exit(main(context.args))
