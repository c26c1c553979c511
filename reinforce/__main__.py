"""The `reinforce` command, and `python -m reinforce`.

`label` runs on devices that have neither typer nor pydantic: it is told apart before either is imported.
"""

import sys


def main() -> None:
    """The entry point of the `reinforce` command."""
    if sys.argv[1:2] == ["label"]:
        from reinforce.deploy.label.command import main as label

        sys.exit(label(sys.argv[2:]))
    try:
        from reinforce.cli import main as run
    except ModuleNotFoundError as error:
        print(f"reinforce: installed for `reinforce label` alone: {error.name} is not there", file=sys.stderr)
        sys.exit(2)
    run()


if __name__ == "__main__":
    main()
