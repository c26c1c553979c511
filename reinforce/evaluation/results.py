"""What an evaluation found, frozen, as JSON and as tables. Shares are of 1, not percent."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from reinforce.config import ValueRange
from reinforce.formatting import format_count, format_counts
from reinforce.sample import RGB_MODALITY

RECALLS = (1, 5, 10)


@dataclass(frozen=True)
class ClassResult:
    """One class: None where there is nothing to measure it on."""

    name: str
    num_samples: int
    accuracy: float | None
    auroc: float | None


@dataclass(frozen=True)
class ZeroShotResult:
    """Zero-shot classification by one model. `drops` and `counts` say what was not used, by reason."""

    model: str
    num_parameters: int
    num_samples: int
    num_templates: int
    bank: str | None
    """The bank whose labels the classes are; None: the model's own texts."""
    top1: float
    top5: float | None
    """None if there are no more than 5 classes."""
    mean_per_class: float
    """Accuracy averaged over the classes that have samples."""
    auroc: float | None
    """One class against the others by raw cosine, averaged over the classes that have both; None if none has, or
    embeddings are not finite."""
    num_classes_without_auroc: int
    num_non_finite: int
    """Embeddings of images and classes that are not finite; such an image counts as wrong."""
    classes: tuple[ClassResult, ...]
    drops: dict[str, int]
    counts: dict[str, int]
    notes: tuple[str, ...]
    modality: str = RGB_MODALITY
    """What the images are; `modality_range` says what is black and white in them, None for RGB."""
    modality_range: ValueRange | None = None

    def to_json(self) -> dict[str, Any]:
        return {"task": "zeroshot"} | asdict(self)


@dataclass(frozen=True)
class MultiLabelResult:
    """Labels of scenes told from the rest by one model; fields as those of `ZeroShotResult`.

    Of a class `num_samples` are those that carry it; there is no accuracy.
    """

    model: str
    num_parameters: int
    num_samples: int
    num_templates: int
    bank: str | None
    auroc: float | None
    num_classes_without_auroc: int
    num_non_finite: int
    classes: tuple[ClassResult, ...]
    drops: dict[str, int]
    counts: dict[str, int]
    notes: tuple[str, ...]
    modality: str = RGB_MODALITY
    modality_range: ValueRange | None = None

    def to_json(self) -> dict[str, Any]:
        return {"task": "multilabel"} | asdict(self)


@dataclass(frozen=True)
class LinearResult:
    """A linear probe of one model's frozen embeddings; fields as those of `ZeroShotResult`.

    The probe minimises the mean cross-entropy + `l2` / 2 x the squared norm of its weights.
    """

    model: str
    num_parameters: int
    num_samples: int
    num_train: int
    """Images that the probe was trained on; `num_held_out` of them chose `l2`, and were then trained on too."""
    num_held_out: int
    num_features: int
    l2: float
    held_out_top1: float
    is_converged: bool
    """Whether every fit reached its optimum."""
    gradient_norm: float
    num_iterations: int
    top1: float
    top5: float | None
    mean_per_class: float
    num_non_finite: int
    classes: tuple[ClassResult, ...]
    drops: dict[str, int]
    train_drops: dict[str, int]
    counts: dict[str, int]
    train_counts: dict[str, int]
    notes: tuple[str, ...]
    modality: str = RGB_MODALITY
    modality_range: ValueRange | None = None

    def to_json(self) -> dict[str, Any]:
        return {"task": "linear"} | asdict(self)


@dataclass(frozen=True)
class RetrievalResult:
    """Retrieval by one model: recall at k, by k."""

    model: str
    num_parameters: int
    num_images: int
    num_captions: int
    text_to_image: dict[int, float]
    """The share of captions whose image is among the first k."""
    image_to_text: dict[int, float]
    """The share of images of which any caption is among the first k."""
    num_non_finite: int
    drops: dict[str, int]
    counts: dict[str, int]
    notes: tuple[str, ...]
    texts: str | None = None
    """The teacher whose stored embeddings the captions are; None: the model's own texts."""

    def to_json(self) -> dict[str, Any]:
        return {"task": "retrieval"} | asdict(self)


@dataclass(frozen=True)
class CrossModalResult:
    """Retrieval between the images of a modality and the RGB ones of the same samples, by one model: recall at k."""

    model: str
    num_parameters: int
    modality: str
    modality_range: ValueRange
    num_pairs: int
    modality_to_rgb: dict[int, float]
    """The share of the modality's images whose sample's RGB image is among the first k."""
    rgb_to_modality: dict[int, float]
    num_non_finite: int
    drops: dict[str, int]
    counts: dict[str, int]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"task": "retrieval"} | asdict(self)


Result = ZeroShotResult | MultiLabelResult | LinearResult | RetrievalResult | CrossModalResult


def render_table(results: Sequence[Result]) -> Table:
    """One row for each model, and what the figures are of below it."""
    assert results
    if isinstance(results[0], ZeroShotResult):
        headers = ["top-1", "top-5", "mean per\nclass", "AUROC"]
    elif isinstance(results[0], MultiLabelResult):
        headers = ["AUROC"]
    elif isinstance(results[0], LinearResult):
        headers = ["top-1", "top-5", "mean per\nclass"]
    elif isinstance(results[0], CrossModalResult):
        name = results[0].modality
        headers = [f"{direction}\nR@{k}" for direction in (f"{name}\nto RGB", f"RGB to\n{name}") for k in RECALLS]
    else:
        headers = [f"{found}\nR@{k}" for found in ("image", "text") for k in RECALLS]
    table = _table("model", "params\n(M)", *headers)
    for result in results:
        _row(table, result.model, f"{result.num_parameters / 1e6:,.2f}", *map(_share, _figures(result)))
    table.caption = Text("\n".join(_facts(results)), style="dim")
    table.caption_justify = "left"
    return table


def render_class_table(
    results: Sequence[ZeroShotResult] | Sequence[MultiLabelResult] | Sequence[LinearResult],
) -> Table:
    """One row for each class: its samples, and each model's accuracy and, but for a probe, AUROC on it."""
    names = [result.model.rstrip("/").rpartition("/")[2] for result in results]
    figures = ("top-1",) if isinstance(results[0], LinearResult) else ("top-1", "AUROC")
    columns = [f"{name}\n{figure}" for name in names for figure in figures]
    table = _table("class", "samples", *columns)
    for rows in zip(*(result.classes for result in results), strict=True):
        shares = [_share(share) for row in rows for share in (row.accuracy, row.auroc)[: len(figures)]]
        _row(table, rows[0].name, f"{rows[0].num_samples:,}", *shares)
    return table


def _figures(result: Result) -> list[float | None]:
    if isinstance(result, ZeroShotResult):
        return [result.top1, result.top5, result.mean_per_class, result.auroc]
    if isinstance(result, MultiLabelResult):
        return [result.auroc]
    if isinstance(result, LinearResult):
        return [result.top1, result.top5, result.mean_per_class]
    if isinstance(result, CrossModalResult):
        return [recalls[k] for recalls in (result.modality_to_rgb, result.rgb_to_modality) for k in RECALLS]
    return [recalls[k] for recalls in (result.text_to_image, result.image_to_text) for k in RECALLS]


def _facts(results: Sequence[Result]) -> list[str]:
    first = results[0]
    if isinstance(first, ZeroShotResult | MultiLabelResult):
        prompts = " and ".join(dict.fromkeys(_prompts(result) for result in results))
        lines = [f"{first.num_samples:,} samples, {len(first.classes):,} classes, {prompts}"]
        if first.num_classes_without_auroc:
            lines.append(f"AUROC without {first.num_classes_without_auroc:,} classes that lack samples or others")
    elif isinstance(first, LinearResult):
        lines = [
            f"{first.num_samples:,} samples, {len(first.classes):,} classes, a probe of {first.num_train:,} others"
        ]
        lines += [_probe(result) for result in results if isinstance(result, LinearResult)]
    elif isinstance(first, CrossModalResult):
        name, pairs = first.modality, format_count(first.num_pairs, "pair")
        lines = [
            f"Of {pairs} each {name} image looks for its RGB image among all, and each RGB image for its {name} image."
        ]
    else:
        lines = [f"{first.num_images:,} images found by {first.num_captions:,} captions, texts found by image"]
        lines += [
            f"{result.model}: captions as {result.texts} embedded them"
            for result in results
            if isinstance(result, RetrievalResult) and result.texts is not None
        ]
    if not isinstance(first, RetrievalResult) and first.modality_range is not None:
        lines.append(f"of {first.modality} images, range {_range(first.modality_range)}")
    left_out = [("dropped", first.drops), ("left out", first.counts)]
    if isinstance(first, LinearResult):
        left_out += [("dropped of --train", first.train_drops), ("left out of --train", first.train_counts)]
    for name, counts in left_out:
        lines += [f"{name}: {format_counts(Counter(counts))}"] if counts else []
    for result in results:
        lines += [f"{result.model}: {result.num_non_finite:,} embeddings not finite"] if result.num_non_finite else []
        lines += result.notes
    return lines


def _probe(result: LinearResult) -> str:
    chosen = f"l2 {result.l2:.2g}, chosen by {result.num_held_out:,} of them at top-1 {result.held_out_top1:.4f}"
    return f"{result.model}: {result.num_features:,} features, {chosen}"


def _range(value_range: ValueRange) -> str:
    return value_range if isinstance(value_range, str) else f"{value_range[0]:g} to {value_range[1]:g}"


def _prompts(result: Result) -> str:
    assert isinstance(result, ZeroShotResult | MultiLabelResult)
    templates = f"{result.num_templates:,} template{'s' * (result.num_templates != 1)}"
    return templates if result.bank is None else f"{templates} of bank {result.bank}"


def _table(*headers: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column(headers[0], overflow="fold")
    for header in headers[1:]:
        table.add_column(header, justify="right", overflow="fold")
    return table


def _row(table: Table, *cells: str) -> None:
    """Cells as they are: a name with brackets in it is not markup."""
    table.add_row(*map(Text, cells))


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.4f}"
