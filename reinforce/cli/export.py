"""`reinforce export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reinforce.cli.errors import one_line_errors

if TYPE_CHECKING:
    from reinforce.deploy.export import ExportReport


def export(
    student: Annotated[Path, typer.Argument(help="A student's folder.")],
    output: Annotated[Path, typer.Option(help="The ONNX file to write.")],
    shards: Annotated[
        list[str], typer.Option(help="Shards with images like those to come, to check with. Default: noise.")
    ] = [],  # noqa: B006
    more_shards: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    bank: Annotated[str | None, typer.Option(help="A bank, DATASET/banks/NAME. Default: the student's own.")] = None,
    num_images: Annotated[int, typer.Option(min=1, help="Images of --shards to check with.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of images.")] = 0,
) -> None:
    """Export a student's image tower to ONNX, checked against PyTorch before it is written."""
    with one_line_errors("the file is written whole or not at all"):
        from reinforce.deploy.export import export_onnx

        uris = [*shards, *(more_shards or [])]
        print(describe(export_onnx(student, output, shards=uris, bank=bank, num_images=num_images, seed=seed)))


def describe(report: "ExportReport") -> str:
    """What was written, in a few lines."""
    from reinforce.formatting import format_counts

    card, agreement = report.card, report.agreement
    folded = f", {report.num_folded_parameters:,} folded" if report.num_folded_parameters else ""
    kind = "noise images" if report.is_checked_with_noise else "images"
    dropped = f", dropped: {format_counts(report.drops)}" if report.drops else ""
    nearest = "the same nearest label" if card.labels else "nearest to the same image"
    lines = [
        f"{report.output}: {report.num_bytes / 1e6:.1f} MB, {report.num_parameters / 1e6:.1f} M parameters{folded}, "
        f"{card.image_size} px to {card.embed_dim} values, opset {report.opset}, {card.precision}",
        f"cosine to PyTorch: {agreement.min_cosine:.6f} at worst, {agreement.mean_cosine:.6f} on average, "
        f"{agreement.top1:.1%} {nearest}; {agreement.num_images} {kind}{dropped}",
    ]
    if card.labels:
        lines.append(f"labels: {len(card.labels.labels)} of bank {card.labels.bank}, teacher {card.labels.teacher}")
    return "\n".join(lines)
