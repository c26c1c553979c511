"""The command line: arguments in, one call, an exit status out. A module a command or a few.

0: all done. 1: finished with failed shards, which are listed. 2: a usage or configuration error, in one line.
130: interrupted, 143: terminated. `--help` imports neither torch nor ray nor Arrow.
"""

import sys

import typer

from reinforce.cli.build import build
from reinforce.cli.demo import demo
from reinforce.cli.errors import terminate_as_interrupt
from reinforce.cli.exchange import import_datacompdr, pack
from reinforce.cli.export import export
from reinforce.cli.inspect import inspect
from reinforce.cli.label import label
from reinforce.cli.select import select
from reinforce.cli.students import evaluate, train_student

__all__ = ["app", "complete_ray", "main", "terminate_as_interrupt"]

app = typer.Typer(
    help="Build and inspect reinforced distillation datasets for CLIP-style models, and train students from them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (build, train_student, evaluate, inspect, select, pack, import_datacompdr, export, demo):
    app.command(_command.__name__.replace("_", "-"))(_command)
# All that follows goes to its own parser, --help too.
_forwarding = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
app.command(context_settings=_forwarding)(label)


def main() -> None:
    """The entry point of the `reinforce` command."""
    terminate_as_interrupt()
    app(args=complete_ray(sys.argv[1:]))


def complete_ray(arguments: list[str]) -> list[str]:
    """The arguments with `--ray` given its ADDRESS where it stands alone, which typer's options cannot."""
    following = [*arguments[1:], "-"]
    pairs = zip(arguments, following, strict=True)
    alone = {"--ray": ["--ray", "any"]}
    return [part for given, after in pairs for part in (after.startswith("-") and alone.get(given)) or [given]]
