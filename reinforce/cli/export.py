"""`reinforce export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reinforce.cli.errors import one_line_errors
from reinforce.config.base import ConfigError

if TYPE_CHECKING:
    from reinforce.deploy.export import ExportReport
    from reinforce.deploy.text_export import TextExportReport


def export(
    student: Annotated[Path, typer.Argument(help="A student's folder.")],
    output: Annotated[Path, typer.Option(help="The ONNX file to write.")],
    shards: Annotated[
        list[str], typer.Option(help="Shards with images like those to come, to check with. Default: noise.")
    ] = [],  # noqa: B006
    more_shards: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    int8: Annotated[bool, typer.Option("--int8", help="In 8-bit integers, calibrated on images of --shards.")] = False,
    target: Annotated[str | None, typer.Option(help="With --int8, for: x86 (the default), arm or tensorrt.")] = None,
    bank: Annotated[str | None, typer.Option(help="A bank, DATASET/banks/NAME. Default: the student's own.")] = None,
    num_images: Annotated[int, typer.Option(min=1, help="Images of --shards to check with, of each modality.")] = 256,
    num_calibration_images: Annotated[
        int, typer.Option(min=1, help="With --int8: images of each to calibrate with.")
    ] = 512,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of images.")] = 0,
    text: Annotated[Path | None, typer.Option(help="Another ONNX file, of the text tower: for new labels.")] = None,
    teacher: Annotated[
        str | None, typer.Option(help="--text of an image tower alone: its teacher, as open_clip opens it.")
    ] = None,
    text_int8: Annotated[bool, typer.Option(help="The weights of --text in 8 bits: a quarter of the size.")] = False,
) -> None:
    """Export a student's image tower to ONNX, checked against PyTorch before it is written."""
    with one_line_errors("the file is written whole or not at all"):
        from reinforce.deploy.export import export_onnx
        from reinforce.deploy.text_export import check_text_request, export_text_onnx

        if text is None and (teacher or text_int8):
            raise ConfigError(f"{'--teacher' if teacher else '--text-int8'}: goes with --text, the file to write")
        if text is not None:
            check_text_request(student, text, output, teacher)
        if target is not None and not int8:
            raise ConfigError("--target: goes with --int8; an fp32 file is for all of them")
        if target not in (None, "x86", "arm", "tensorrt"):
            raise ConfigError(f"--target {target}: must be x86, arm or tensorrt")
        report = export_onnx(
            student,
            output,
            target=(target or "x86") if int8 else None,  # type: ignore[arg-type]
            shards=[*shards, *(more_shards or [])],
            bank=bank,
            num_images=num_images,
            num_calibration_images=num_calibration_images,
            seed=seed,
        )
        print(describe(report))
        if text is not None:
            print(describe_text(export_text_onnx(student, text, teacher=teacher, int8=text_int8)))


def describe(report: "ExportReport") -> str:
    """What was written, in a few lines."""
    from reinforce.formatting import format_counts

    card = report.card
    precision = f"int8 for {card.target}" if card.target else card.precision
    folded = f", {report.num_folded_parameters:,} folded" if report.num_folded_parameters else ""
    lines = [
        f"{report.output}: {report.num_bytes / 1e6:.1f} MB, {report.num_parameters / 1e6:.1f} M parameters{folded}, "
        f"{card.image_size} px to {card.embed_dim} values, opset {report.opset}, {precision}",
        *(_describe_agreement(report, name) for name in report.agreements),
    ]
    num_used = report.num_calibration_images + next(iter(report.agreements.values())).num_images
    if not report.is_checked_with_noise and num_used < report.num_wanted:
        lines.append(f"of {report.num_wanted:,} samples wanted, {num_used:,} could be used")
    if report.drops:
        lines.append(f"samples left out: {format_counts(report.drops)}")
    if card.modalities and report.is_checked_with_noise:
        lines.append(f"not checked with images of {', '.join(card.modalities)}, which noise is not: pass --shards")
    if report.num_calibration_images:
        each = " of each" if len(report.agreements) > 1 else ""
        lines.append(f"calibrated on {report.num_calibration_images} other images{each}")
    if card.labels:
        lines.append(f"labels: {len(card.labels.labels)} of bank {card.labels.bank}, teacher {card.labels.teacher}")
    return "\n".join(lines)


def _describe_agreement(report: "ExportReport", modality: str) -> str:
    agreement = report.agreements[modality]
    kind = f"{modality} images" if report.card.modalities else "images"
    kind = "noise images" if report.is_checked_with_noise else kind
    nearest = "the same nearest label" if report.card.labels else "nearest to the same image"
    return (
        f"cosine to PyTorch: {agreement.min_cosine:.6f} at worst, {agreement.mean_cosine:.6f} on average "
        f"(two different images: {agreement.cosine_between_images:.2f}), "
        f"{agreement.top1:.1%} {nearest}; {agreement.num_images} {kind}"
    )


def describe_text(report: "TextExportReport") -> str:
    """What was written of the text tower, in two lines."""
    card = report.card
    return (
        f"{report.output}: {report.num_bytes / 1e6:.1f} MB, {report.num_parameters / 1e6:.1f} M parameters, text tower "
        f"of {card.teacher or 'the student'}, {card.context_length} tokens to {card.embed_dim} values, {card.precision}"
        f"\ncosine to PyTorch: {card.agreement['min_cosine']:.6f} at worst, {card.agreement['mean_cosine']:.6f} on "
        f"average; {card.agreement['num_texts']} texts"
    )
