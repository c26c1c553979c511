"""`reinforce select`."""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reinforce.cli.errors import one_line_errors
from reinforce.config.base import ConfigError

if TYPE_CHECKING:
    from reinforce.selection import Criteria
    from reinforce.shards.banks import Bank
    from reinforce.shards.dataset import Dataset


def select(
    dataset: Annotated[str, typer.Argument(metavar="URI", help="A reinforced dataset.")],
    output: Annotated[str, typer.Option(help="The selection to write, a Parquet; --select of other commands.")],
    within: Annotated[list[str], typer.Option(help="Only samples that this selection has, too.")] = [],  # noqa: B006
    without: Annotated[list[str], typer.Option(help="Only samples that this selection lacks.")] = [],  # noqa: B006
    union: Annotated[list[str], typer.Option(help="Add the samples of this selection at the end.")] = [],  # noqa: B006
    split: Annotated[
        str | None, typer.Option(help="LOW:HIGH, parts of 1: 0:0.9 to train on, 0.9:1 to validate with.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the split: another seed, another split.")] = 0,
    min_score: Annotated[float | None, typer.Option(help="Least cosine of image and caption.")] = None,
    keep_top: Annotated[
        float | None,
        typer.Option(
            help="Share with the highest scores that is kept; with --bank and no --score: with the surest labels."
        ),
    ] = None,
    score: Annotated[
        str | None, typer.Option(help="Captions to score against: original (default), synthetic, or best of both.")
    ] = None,
    teacher: Annotated[
        list[str], typer.Option(help="Whose embeddings; several: their mean score. Default: all, by name.")
    ] = [],  # noqa: B006
    bank: Annotated[str | None, typer.Option(help="A bank of the dataset, by NAME: give every sample a label.")] = None,
    labels: Annotated[str | None, typer.Option(help="Likewise, of a file: class names, one a line.")] = None,
    templates: Annotated[str | None, typer.Option(help="Prompts for --labels, as those of evaluate.")] = None,
    keep_confident: Annotated[float | None, typer.Option(help="Share with the surest labels that is kept.")] = None,
    dedup: Annotated[float | None, typer.Option(help="Cosine of images from which on one of them is left out.")] = None,
    missing: Annotated[str, typer.Option(help="A shard without a signal that is needed: error or skip.")] = "error",
    as_json: Annotated[bool, typer.Option("--json", help="Every figure, as JSON.")] = False,
) -> None:
    """Pick samples of a dataset by score, label, likeness, split or other selections, and say why the rest goes."""
    with one_line_errors():
        _check_choice("--score", score, ("original", "synthetic", "best"))
        _check_choice("--missing", missing, ("error", "skip"))
        _check_labels(bank, labels, templates, keep_confident)
        from reinforce.selection import Criteria, select_samples
        from reinforce.selection.criteria import parse_split
        from reinforce.selection.outcome import describe
        from reinforce.shards.dataset import open_dataset

        asked: dict[str, Any] = {
            "within": tuple(within),
            "without": tuple(without),
            "union": tuple(union),
            "split": None if split is None else parse_split(split),
            "seed": seed,
            "score": score,
            "min_score": min_score,
            "keep_top": keep_top,
            "teachers": tuple(teacher),
            "keep_confident": keep_confident,
            "dedup": dedup,
            "missing": missing,
        }
        criteria = Criteria(**asked)
        opened = open_dataset(dataset)
        outcome = select_samples(opened, output, criteria, bank=_bank(opened, criteria, bank, labels, templates))
        print(json.dumps(outcome.to_json(), indent=2, ensure_ascii=False) if as_json else describe(outcome))


def _check_labels(bank: str | None, labels: str | None, templates: str | None, keep_confident: float | None) -> None:
    if bank is not None and labels is not None:
        raise ConfigError("--bank, --labels: give one of the two")
    if templates is not None and labels is None:
        raise ConfigError("--templates: goes with --labels")
    if keep_confident is not None and bank is None and labels is None:
        raise ConfigError("--keep-confident: goes with --bank or --labels")


def _bank(
    dataset: "Dataset", criteria: "Criteria", name: str | None, labels: str | None, templates: str | None
) -> "Bank | None":
    """The dataset's own bank of a name, or one that is made here of a file of labels; None if neither is given."""
    if name is None and labels is None:
        return None
    from reinforce.selection.signals import choose_teachers

    criteria.with_bank()  # what cannot be asked is told before a teacher is loaded
    teacher = choose_teachers(dataset, criteria.teachers)[0]
    if labels is None:
        from reinforce.selection import stored_bank

        return stored_bank(dataset, name or "", teacher)
    from reinforce.banks import embed_recorded

    made, num_repeated = embed_recorded(dataset, teacher, labels, templates)
    if num_repeated:
        print(f"--labels {labels}: {num_repeated:,} repeated labels left out", file=sys.stderr)
    return made


def _check_choice(option: str, given: str | None, choices: tuple[str, ...]) -> None:
    if given is not None and given not in choices:
        raise ConfigError(f"{option} {given}: one of {', '.join(choices)}")
