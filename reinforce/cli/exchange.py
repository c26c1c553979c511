"""`reinforce import-datacompdr` and `pack`: datasets in and out of the published layout of DataCompDR."""

import math
from collections.abc import Sequence
from typing import Annotated, TypeVar

import typer

from reinforce.cli.errors import one_line_errors
from reinforce.config.base import ConfigError

Number = TypeVar("Number", int, float)


def import_datacompdr(
    uri: Annotated[str, typer.Argument(metavar="URI", help="Tars of the published layout, or of reinforce pack.")],
    output: Annotated[str, typer.Option(help="Where the dataset goes, or is already: a folder or a URI.")],
    dims: Annotated[
        str | None, typer.Option(help="NAME=WIDTH,...: the teachers in the order of the columns. Not for packed tars.")
    ] = None,
    logit_scale: Annotated[
        list[str],
        typer.Option(help="NAME=SCALE to match a teacher at; default 100. One teacher each. Not for packed tars."),
    ] = [],  # noqa: B006
    captioner: Annotated[
        str | None,
        typer.Option(help="The name that the synthetic captions get; default datacompdr. Not for packed tars."),
    ] = None,
) -> None:
    """Turn DataCompDR tars into a dataset of this format, to train from and to inspect. Run again to resume."""
    with one_line_errors():
        from reinforce.exchange import datacompdr
        from reinforce.exchange.shards_run import describe_run

        summary = datacompdr.import_datacompdr(
            uri,
            output,
            dims=_pairs("--dims", dims.split(",") if dims else [], int),
            logit_scales=_pairs("--logit-scale", logit_scale, float),
            captioner=captioner,
        )
        changed = "images are not those the tars were made from, by their sha256: resized since, perhaps"
        print(describe_run(summary, {"images_changed": changed}))
        if summary.failed or summary.stopped:
            raise typer.Exit(1)


def pack(
    dataset: Annotated[str, typer.Argument(metavar="URI", help="A reinforced dataset.")],
    output: Annotated[str, typer.Option(help="Where the tars go: a folder or a URI.")],
    shortest_side: Annotated[
        int | None, typer.Option(min=16, help="Shrink larger images to this shorter side, in pixels.")
    ] = None,
    embeddings: Annotated[str, typer.Option(help="npz (float32) or pth.gz (bfloat16).")] = "npz",
    shards: Annotated[list[str], typer.Option(help="Only these source shards.")] = [],  # noqa: B006
    root: Annotated[str | None, typer.Option(help="The folder that shard names are relative to, if it moved.")] = None,
) -> None:
    """Pack a dataset with its images into WebDataset tars in the layout of DataCompDR. Run again to resume."""
    with one_line_errors():
        if embeddings not in ("npz", "pth.gz"):
            raise ConfigError(f"--embeddings {embeddings}: must be npz or pth.gz")
        from reinforce.exchange.pack import PackOptions
        from reinforce.exchange.pack import pack as pack_dataset
        from reinforce.exchange.pictures import JPEG_QUALITY
        from reinforce.exchange.shards_run import describe_run

        options = PackOptions(embeddings=embeddings, shortest_side=shortest_side)  # type: ignore[arg-type]
        summary = pack_dataset(dataset, output, options=options, shards=shards, root=root)
        again = f"images encoded again, as JPEG of quality {JPEG_QUALITY}"
        print(describe_run(summary, {"encoded_again": again}))
        if summary.failed or summary.stopped:
            raise typer.Exit(1)


def _pairs(option: str, given: Sequence[str], number: type[Number]) -> dict[str, Number]:
    """NAME=NUMBER, several; raises `ConfigError`."""
    pairs: dict[str, Number] = {}
    for text in given:
        name, equals, value = text.partition("=")
        try:
            parsed = number(value)
        except ValueError:
            parsed = number(0)
        if not equals or not name or not 0 < parsed < math.inf:
            raise ConfigError(
                f"{option} {text}: give NAME={'WIDTH' if number is int else 'SCALE'}, such as teacher_a=768"
            )
        if name in pairs:
            raise ConfigError(f"{option}: {name} is named twice")
        pairs[name] = parsed
    return pairs
