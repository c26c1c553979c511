"""What a student of several modalities costs and keeps once it is exported: size, speed, accuracy, fp32 beside int8.

    python -m tests.benchmarks.edgevl_deployment --student DIR --shards LABELLED --calibration SHARDS --modality depth

Everything is what a user would run, each in a process of its own: `reinforce export` on `--calibration`, then
`reinforce label` on the images of `--shards` (a folder of tars with `.cls` members, `classnames.txt` there or above) as
files, those of RGB and of each `--modality`. Accuracy is that of the first label. Speed: `label --benchmark` on one
thread of one core; precisions and modalities take turns, figures are medians of the rounds.
"""

import argparse
import json
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.benchmarks.deployment import measure, reinforce
from tests.benchmarks.deployment_figures import STAGES, Run
from tests.benchmarks.timing import with_range

PRECISIONS = {"fp32": [], "int8": ["--int8"]}
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")


@dataclass(frozen=True)
class Images:
    """The images of one modality as files, and the class name of each by the file's name."""

    folder: Path
    truth: dict[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", type=Path, required=True, metavar="DIR")
    parser.add_argument("--shards", type=Path, required=True, metavar="DIR")
    parser.add_argument("--calibration", nargs="+", required=True, metavar="SHARDS")
    parser.add_argument("--modality", nargs="+", required=True, metavar="NAME")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        recorded = json.loads((options.student / "student.json").read_text())["modalities"]
        suffixes = {name: (recorded[name]["suffix"],) for name in options.modality}
        images = {
            name: extract(options.shards, folder / name, own, [suffix for suffix, *_ in suffixes.values()])
            for name, own in ({"rgb": IMAGE_SUFFIXES} | suffixes).items()
        }
        models = {}
        for precision, arguments in PRECISIONS.items():
            models[precision] = folder / f"{precision}.onnx"
            shards = [part for shard in options.calibration for part in ("--shards", str(shard))]
            student = str(options.student.resolve())
            print(reinforce("export", student, "--output", str(models[precision]), *shards, *arguments))
        accuracies = {
            (precision, name): accuracy(model, of_modality, name)
            for precision, model in models.items()
            for name, of_modality in images.items()
        }
        print(table(models, images, accuracies, time_all(models, images, options.rounds)))


def extract(shards: Path, folder: Path, own: Sequence[str], of_modalities: Sequence[str]) -> Images:
    """Images whose suffix is one of `own`, numbered by their keys; `of_modalities` are no RGB images."""
    folder.mkdir()
    names = next(path for path in (shards, shards.parent) if (path / "classnames.txt").exists())
    classes = (names / "classnames.txt").read_text().splitlines()
    numbers: dict[tuple[str, str], str] = {}
    labels: dict[str, str] = {}
    files: dict[str, str] = {}
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                suffix = longest_suffix(member.name, [*own, *of_modalities, *IMAGE_SUFFIXES, "cls"])
                file = tar.extractfile(member)
                if suffix is None or file is None:
                    continue
                key = (path.name, member.name[: -len(suffix) - 1])
                number = numbers.setdefault(key, f"{len(numbers):06d}")
                if suffix == "cls":
                    labels[number] = classes[int(file.read())]
                elif suffix in own:
                    files[number] = f"{number}.{suffix}"
                    (folder / files[number]).write_bytes(file.read())
    return Images(folder, {name: labels[number] for number, name in files.items()})


def longest_suffix(name: str, suffixes: Sequence[str]) -> str | None:
    return max((suffix for suffix in suffixes if name.lower().endswith(f".{suffix}")), key=len, default=None)


def accuracy(model: Path, images: Images, modality: str) -> float:
    answer = reinforce("label", str(model), str(images.folder), "--modality", modality, "--json", "--top-k", "1")
    rows = [json.loads(line) for line in answer.splitlines()]
    assert len(rows) == len(images.truth), f"{len(rows)} of {len(images.truth)} images have a line"
    hits: list[bool] = [row["labels"] == [images.truth[Path(row["path"]).name]] for row in rows]
    return sum(hits) / len(hits)


def time_all(models: dict[str, Path], images: dict[str, Images], num_rounds: int) -> dict[tuple[str, str], list[Run]]:
    """A round begins with another side than the last, so that what is slow for a while is slow for all."""
    sides = [(precision, name) for name in images for precision in models]
    runs: dict[tuple[str, str], list[Run]] = {side: [] for side in sides}
    for number in range(num_rounds):
        first = number % len(sides)
        for precision, name in sides[first:] + sides[:first]:
            runs[precision, name].append(measure(str(models[precision]), images[name].folder, 1, name))
    return runs


def table(
    models: dict[str, Path],
    images: dict[str, Images],
    accuracies: dict[tuple[str, str], float],
    runs: dict[tuple[str, str], list[Run]],
) -> str:
    lines = [
        "| modality | images | precision | MB | accuracy | points lost | images/s | decode / preprocess / infer, ms |"
        " fp32 over int8, infer | peak memory |\n|---|---|---|---|---|---|---|---|---|---|"
    ]
    for name, of_modality in images.items():
        for precision, model in models.items():
            of_side, share = runs[precision, name], accuracies[precision, name]
            times = " / ".join(f"{median(run.median_ms[stage] for run in of_side):.2f}" for stage in STAGES)
            pairs = zip(runs["fp32", name], of_side, strict=True)
            ratios = (fp32.median_ms["infer"] / int8.median_ms["infer"] for fp32, int8 in pairs)
            lost = f"{100 * (accuracies['fp32', name] - share):.2f}"
            lost, ratio = ("", "") if precision == "fp32" else (lost, with_range(ratios))
            peak_mb = max(max(run.peak_rss_mb, run.kernel_peak_rss_mb) for run in of_side)
            lines.append(
                f"| {name} | {len(of_modality.truth):,} | {precision} | {model.stat().st_size / 1e6:.1f} | "
                f"{share:.4f} | {lost} | {median(run.fps for run in of_side):.1f} | {times} | {ratio} | "
                f"{peak_mb:.0f} MB |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
