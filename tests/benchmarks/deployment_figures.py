"""The figures of `deployment`, and how they are shown."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from tests.benchmarks.timing import with_range

STAGES = ("decode", "preprocess", "infer")


@dataclass(frozen=True, kw_only=True)
class Model:
    """One exported file. `agreement` is its card's, with PyTorch; accuracy and AUROC only of trained students."""

    name: str
    """Its student's: the backbone, numbered where there are several of one."""
    backbone: str
    image_size: int
    precision: str
    path: str
    num_bytes: int
    macs: int
    num_parameters: int
    agreement: dict[str, float]
    accuracy: float | None = None
    macro_auroc: float | None = None


@dataclass(frozen=True, kw_only=True)
class Run:
    """One process of `label --benchmark`; peak memory as it says itself, and as the kernel said when it had ended."""

    path: str
    threads: int
    fps: float
    median_ms: dict[str, float]
    peak_rss_mb: float
    kernel_peak_rss_mb: float


def files_table(models: Sequence[Model]) -> str:
    lines = [
        "\n| network | pixels | M params | GMACs | precision | MB | cosine to PyTorch, mean (least) | same label |"
        " accuracy | points lost | macro AUROC |\n|---|---|---|---|---|---|---|---|---|---|---|"
    ]
    fp32_accuracy = None
    for model in models:
        cosines = f"{model.agreement['mean_cosine']:.4f} ({model.agreement['min_cosine']:.4f})"
        fp32_accuracy = model.accuracy if model.precision == "fp32" else fp32_accuracy
        scores = " |  | "
        if model.accuracy is not None and model.macro_auroc is not None and fp32_accuracy is not None:
            lost = "" if model.precision == "fp32" else f"{100 * (fp32_accuracy - model.accuracy):.2f}"
            scores = f"{model.accuracy:.4f} | {lost} | {model.macro_auroc:.4f}"
        lines.append(
            f"| {model.name} | {model.image_size} | {model.num_parameters / 1e6:.1f} | {model.macs / 1e9:.3f} | "
            f"{model.precision} | {model.num_bytes / 1e6:.1f} | {cosines} | {model.agreement['top1']:.1%} | {scores} |"
        )
    return "\n".join(lines)


def speed_table(models: Sequence[Model], runs: Sequence[Run]) -> str:
    lines = [
        "\n| network | pixels | threads | precision | images/s | decode / preprocess / infer, ms |"
        " fp32 over int8, infer | peak memory |\n|---|---|---|---|---|---|---|---|"
    ]
    fp32_runs: Sequence[Run] = []
    for threads in sorted({run.threads for run in runs}):
        for model in models:
            of_model = [run for run in runs if (run.path, run.threads) == (model.path, threads)]
            fp32_runs = of_model if model.precision == "fp32" else fp32_runs
            times = " / ".join(f"{median(run.median_ms[stage] for run in of_model):.2f}" for stage in STAGES)
            pairs = zip(fp32_runs, of_model, strict=True)
            ratios = (fp32.median_ms["infer"] / int8.median_ms["infer"] for fp32, int8 in pairs)
            peak_mb = max(max(run.peak_rss_mb, run.kernel_peak_rss_mb) for run in of_model)
            lines.append(
                f"| {model.name} | {model.image_size} | {threads} | {model.precision} | "
                f"{median(run.fps for run in of_model):.1f} | {times} | "
                f"{'' if model.precision == 'fp32' else with_range(ratios)} | {peak_mb:.0f} MB |"
            )
    return "\n".join(lines)
