"""`reinforce select`."""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reinforce.cli.errors import one_line_errors
from reinforce.cli.sentences import refuse_given, select_by_images
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
    corpus: Annotated[
        list[str], typer.Option(help="Pick sentences of this corpus by NAME, those near the images; may be repeated.")
    ] = [],  # noqa: B006
    nearest: Annotated[
        int | None, typer.Option(help="With --corpus: sentences near an image; one near any image is kept.")
    ] = None,
    max_per_image: Annotated[
        int | None, typer.Option(help="With --corpus: sentences with the same nearest image, the best of them.")
    ] = None,
    keep: Annotated[int | None, typer.Option(help="With --corpus: sentences at most, every image's nearest first.")] = (
        None
    ),
    images: Annotated[str | None, typer.Option(help="With --corpus: only images of this selection.")] = None,
    probe: Annotated[
        int | None,
        typer.Option(help="With --corpus: look in this many cells of sentences only; default: in all, exact."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Every figure, as JSON.")] = False,
) -> None:
    """Pick samples of a dataset by score, label, likeness, split or other selections, and say why the rest goes.

    With --corpus the same for sentences without images: those that are near the dataset's images.
    """
    with one_line_errors():
        _check_choice("--score", score, ("original", "synthetic", "best"))
        _check_choice("--missing", missing, ("error", "skip"))
        _check_labels(bank, labels, templates, keep_confident)
        from reinforce.selection.criteria import parse_split

        asked: dict[str, Any] = {
            "within": tuple(within),
            "without": tuple(without),
            "split": None if split is None else parse_split(split),
            "seed": seed,
            "min_score": min_score,
            "dedup": dedup,
            "missing": missing,
        }
        of_images = {"union": tuple(union), "score": score, "keep_top": keep_top, "keep_confident": keep_confident}
        of_sentences = {
            "nearest": nearest,
            "max_per_image": max_per_image,
            "keep": keep,
            "images": images,
            "probe": probe,
        }
        if corpus:
            refuse_given(of_images | {"bank": bank, "labels": labels}, "not of sentences: not with --corpus")
            asked |= {"corpora": tuple(corpus)} | of_sentences
            print(select_by_images(dataset, output, asked, teacher, as_json=as_json))
        else:
            refuse_given(of_sentences, "goes with --corpus")
            asked |= of_images | {"teachers": tuple(teacher)}
            print(_select_samples(dataset, output, asked, (bank, labels, templates), as_json=as_json))


def _select_samples(
    uri: str, output: str, asked: dict[str, Any], labelling: tuple[str | None, str | None, str | None], *, as_json: bool
) -> str:
    """What became of the samples; `labelling` is --bank, --labels and --templates."""
    from reinforce.selection import Criteria, select_samples
    from reinforce.selection.outcome import describe
    from reinforce.shards.dataset import open_dataset

    criteria = Criteria(**asked)
    dataset = open_dataset(uri)
    outcome = select_samples(dataset, output, criteria, bank=_bank(dataset, criteria, *labelling))
    return json.dumps(outcome.to_json(), indent=2, ensure_ascii=False) if as_json else describe(outcome)


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
