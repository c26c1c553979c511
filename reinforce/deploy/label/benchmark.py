"""`--benchmark`: how fast the given images are labelled on this machine, and in how much memory.

Goes round the images until both a time and a number are reached; the first few are not counted. Nothing is printed
meanwhile. Peak memory is that of the whole process, from its start.
"""

import json
import os
import platform
import resource
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from time import perf_counter

import numpy as np
import onnxruntime
import PIL

from reinforce.deploy.label.errors import LabelError
from reinforce.deploy.label.inputs import STREAM, Encoded, Inputs, Unusable
from reinforce.deploy.label.labelling import Labelled, Labeller
from reinforce.deploy.label.modalities import names_of

MIN_IMAGES = 20
_WARM_UP_IMAGES = 5
_STAGES = ("decode", "preprocess", "infer", "total")


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What was measured, on what. Times are of one image, by stage; `fps` is end to end, reading the file included."""

    model: str
    num_bytes: int
    precision: str
    target: str | None
    image_size: int
    modality: str
    num_labels: int
    threads: int
    onnxruntime: str
    pillow: str
    cpu: str
    num_cpus: int
    num_images: int
    elapsed_s: float
    fps: float
    median_ms: dict[str, float]
    p95_ms: dict[str, float]
    peak_rss_bytes: int


def run_benchmark(labeller: Labeller, arguments: list[str], seconds: float) -> tuple[Benchmark, list[Unusable]]:
    """The figures, and the inputs that were left out because they cannot be labelled. Raises LabelError."""
    if STREAM in arguments:
        raise LabelError("--benchmark: give files or folders; a stream cannot be repeated")
    unusable: dict[str | int, Unusable] = {}
    rounds = _rounds(labeller, arguments, unusable)
    for _ in islice(rounds, _WARM_UP_IMAGES):
        pass
    times: list[tuple[float, ...]] = []
    started = perf_counter()
    while (elapsed_s := perf_counter() - started) < seconds or len(times) < MIN_IMAGES:
        labelled = next(rounds)
        times.append((labelled.decode_ms, labelled.preprocess_ms, labelled.infer_ms, labelled.total_ms))
    card = labeller.model.card
    figures = Benchmark(
        model=str(labeller.model.path),
        num_bytes=labeller.model.num_bytes,
        precision=card.precision,
        target=card.target,
        image_size=card.image_size,
        modality=labeller.modality,
        num_labels=len(labeller.scorer.labels),
        threads=labeller.model.num_threads,
        onnxruntime=onnxruntime.__version__,
        pillow=PIL.__version__,
        cpu=_cpu_name(),
        num_cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        num_images=len(times),
        elapsed_s=elapsed_s,
        fps=len(times) / elapsed_s,
        median_ms=dict(zip(_STAGES, np.median(times, axis=0).tolist(), strict=True)),
        p95_ms=dict(zip(_STAGES, np.percentile(times, 95, axis=0).tolist(), strict=True)),
        peak_rss_bytes=_peak_rss_bytes(),
    )
    return figures, list(unusable.values())


def describe(figures: Benchmark, as_json: bool) -> str:
    """As lines for people, or as one JSON object."""
    if as_json:
        return json.dumps(asdict(figures), ensure_ascii=False)
    precision = figures.precision + (f" ({figures.target})" if figures.target else "")
    lines = [
        f"model        {figures.model}: {figures.num_bytes / 1e6:.1f} MB, {precision}, {figures.image_size} px, "
        f"{figures.num_labels:,} labels",
        f"machine      {figures.cpu}, {figures.num_cpus} cores; onnxruntime {figures.onnxruntime}, "
        f"Pillow {figures.pillow}",
        f"threads      {figures.threads}",
        f"images       {figures.num_images:,} ({figures.modality}) in {figures.elapsed_s:.1f} s",
        "                median      p95",
        *(f"{name:<12} {figures.median_ms[name]:7.2f} {figures.p95_ms[name]:8.2f} ms" for name in _STAGES),
        f"end to end   {figures.fps:7.1f} images/s",
        f"peak memory  {figures.peak_rss_bytes / 1e6:7.1f} MB",
    ]
    return "\n".join(lines)


def _rounds(labeller: Labeller, arguments: list[str], unusable: dict[str | int, Unusable]) -> Iterator[Labelled]:
    """The images that can be labelled, over and over; the others by their name in `unusable`."""
    names = names_of(labeller.model.card, labeller.modality)
    while True:
        num_labelled = 0
        for item in Inputs(arguments, names=names):
            if isinstance(item, Encoded):
                try:
                    labelled = labeller.label(item.data)
                except LabelError as error:
                    item = Unusable(item.source, str(error))
                else:
                    num_labelled += 1
                    yield labelled
                    continue
            unusable[item.source] = item
        if not num_labelled:
            reason = next(iter(unusable.values()))
            raise LabelError(f"--benchmark: none of the images can be labelled ({reason.source}: {reason.error})")


def _cpu_name() -> str:
    """As the kernel names it; boards with ARM cores say what board they are."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
        return Path("/proc/device-tree/model").read_text().rstrip("\0")
    except OSError:
        return platform.processor() or platform.machine()


def _peak_rss_bytes() -> int:
    try:
        # Not getrusage where the kernel has this: a process started from a larger one inherits that one's peak there.
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) << 10
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak << 10
