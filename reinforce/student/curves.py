"""Figures of training runs as SVG: the same rows give the same bytes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

CURVES_FILE = "curves.svg"

_LEFT_OUT = {"kind", "step", "samples", "epoch", "learning_rate", "left_out", "samples_per_s", "wait_share"}


def draw_curves(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """The loss with its terms and, if there are evaluations, their accuracy, over the samples seen."""
    train = [row for row in rows if row["kind"] == "train"]
    evaluations = [row for row in rows if row["kind"] == "evaluation"]
    names = [name for name in train[0] if name not in _LEFT_OUT and name not in ("logit_scale", "gradient_norm")]
    panels = [("loss", train, names)]
    if evaluations:
        panels.append(("accuracy", evaluations, ["top1"]))
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


def draw_accuracy(runs: dict[str, Sequence[dict[str, Any]]], levels: dict[str, float], path: Path) -> None:
    """Zero-shot accuracy over samples seen, a line a run, and a level for each model that is not trained."""
    figure, (axis,) = _new_figure(1)
    for index, (name, rows) in enumerate(runs.items()):
        points = [(row["samples"], row["top1"]) for row in rows if row["kind"] == "evaluation"]
        axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name, color=f"C{index}")
    for name, value in levels.items():
        axis.axhline(value, linestyle="--", linewidth=1, color="0.5")
        axis.annotate(name, (0, value), (4, 3), textcoords="offset points", color="0.4", fontsize=8)
    axis.set_xlabel("samples seen")
    axis.set_ylabel("zero-shot accuracy")
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False, loc="lower right")
    _save(figure, path)


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
