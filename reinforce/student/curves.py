"""Figures of training runs as SVG: the same rows give the same bytes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CURVES_FILE = "curves.svg"

_LEFT_OUT = {
    "kind",
    "step",
    "samples",
    "epoch",
    "learning_rate",
    "left_out",
    "samples_per_s",
    "wait_share",
    "reader_ms",
}
_LABEL_HEIGHT = 0.06
"""Of a line of text, as a share of the axis of accuracy."""


def draw_curves(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """The loss with its terms and, if there are evaluations, their accuracy, over the samples seen."""
    train = [row for row in rows if row["kind"] == "train"]
    evaluations = [row for row in rows if row["kind"] == "evaluation"]
    names = [name for name in train[0] if name not in _LEFT_OUT and name not in ("logit_scale", "gradient_norm")]
    panels = [("loss", train, names)]
    if evaluations:
        of_modalities = [name for name in evaluations[0] if name.startswith("top1_")]
        panels.append(("accuracy", evaluations, of_modalities or ["top1"]))
    panels += [("logit scale", train, ["logit_scale"]), ("gradient norm", train, ["gradient_norm"])]
    figure, axes = _new_figure(len(panels))
    for axis, (title, of_panel, columns) in zip(axes, panels, strict=True):
        for name in columns:
            axis.plot([row["samples"] for row in of_panel], [row[name] for row in of_panel], label=name)
        axis.set_title(title)
        axis.set_xlabel("samples seen")
        if len(columns) > 1:
            axis.legend(frameon=False)
    _save(figure, path)


def draw_accuracy(runs: Mapping[str, Sequence[dict[str, Any]]], levels: Mapping[str, float], path: Path) -> None:
    """Zero-shot accuracy over samples seen, a line a run, and a level for each model that is not trained.

    Each has its name and its last accuracy at the right.
    """
    figure, (axis,) = _new_figure(1)
    ends = []
    for index, (name, rows) in enumerate(runs.items()):
        points = [(row["samples"], row["top1"]) for row in rows if row["kind"] == "evaluation"]
        axis.plot(*zip(*points, strict=True), marker="o", markersize=3.5, color=f"C{index}")
        ends.append((points[-1][1], name, f"C{index}", "bold"))
    for name, value in levels.items():
        axis.axhline(value, linestyle=(0, (5, 3)), linewidth=1, color="0.5")
        ends.append((value, name, "0.35", "normal"))
    ends.sort(key=lambda end: end[0])
    heights = _spread([value for value, *_ in ends], _LABEL_HEIGHT)
    for height, (value, name, color, weight) in zip(heights, ends, strict=True):
        axis.annotate(
            f"{name}  {value:.2f}",
            (1.02, height),
            xycoords=axis.get_yaxis_transform(),
            color=color,
            fontweight=weight,
            va="center",
        )
    axis.set_xlabel("samples seen")
    axis.set_ylabel("zero-shot accuracy")
    axis.set_xlim(left=0)
    axis.set_ylim(0, 1)
    axis.locator_params(axis="x", nbins=5)
    axis.xaxis.set_major_formatter("{x:,.0f}")
    _save(figure, path)


def _spread(values: Sequence[float], gap: float) -> list[float]:
    """Ascending values moved apart to at least `gap`, the last by the least, as labels that must not overlap."""
    spread = list(values)
    for index in range(len(spread) - 2, -1, -1):
        spread[index] = min(spread[index], spread[index + 1] - gap)
    return spread


def _new_figure(num_panels: int) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, num_panels, figsize=(4.2 * num_panels + 1.4 * (num_panels == 1), 3.4), squeeze=False
    )
    for axis in axes[0]:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes[0]


def _save(figure: Any, path: Path) -> None:
    import matplotlib
    from matplotlib import pyplot

    with matplotlib.rc_context({"svg.hashsalt": "reinforce", "svg.fonttype": "path"}):
        figure.savefig(path, format="svg", bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)
