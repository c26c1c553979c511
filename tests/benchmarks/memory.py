"""Peak memory of a build above what it holds once the models are loaded, by size of the shard.

    python -m tests.benchmarks.memory        (about 10 minutes on two cores)

A shard of 1,000 and one of 10,000 JPEGs of 100 kB or more, 5 views, a small random ViT; each in a process of its own.
"""

import io
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from reinforce.config import BuildConfig
from reinforce.plan import load_plan
from reinforce.runners import run_plan
from reinforce.storage import find_shards, open_store
from tests.models import save_open_clip
from tests.tars import encode, write_tar


def noisy_jpegs(count: int) -> list[bytes]:
    """Distinct photographs-sized JPEGs; noise keeps them above 100 kB."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 255, (480, 640, 3), dtype=np.uint8)
    return [encode(Image.fromarray(np.roll(pixels, i, axis=1)), "JPEG", quality=40) for i in range(count)]


def status_kb(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise KeyError(field)


def growth_mb(source: Path, model: str, output: Path) -> float:
    """Peak resident memory of a build above that before it, in MB."""
    config = {"teachers": {"t": {"model": model}}, "views": {"count": 5}, "workers": 1, "source": {"captions": []}}
    plan = load_plan(BuildConfig.model_validate(config))
    root, refs = find_shards([str(source)])
    Path("/proc/self/clear_refs").write_text("5")
    before_kb = status_kb("VmRSS")
    console = Console(file=io.StringIO())
    run_plan(plan, refs, open_store(str(output), create=True), source_root=root, console=console)
    return (status_kb("VmHWM") - before_kb) / 1024


def main() -> None:
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        source, model, output = sys.argv[1:]
        print(growth_mb(Path(source), model, Path(output)))
        return
    jpegs = noisy_jpegs(50)
    print(f"images of {min(map(len, jpegs)) / 1000:.0f} kB or more\n\n| shard | peak above loaded models |\n|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = save_open_clip(folder / "model")
        peaks = []
        for count in (1000, 10_000):
            write_tar(folder / str(count) / "s.tar", ((f"{i:06d}.jpg", jpegs[i % len(jpegs)]) for i in range(count)))
            arguments = [str(folder / str(count)), model, str(folder / f"out{count}")]
            command = [sys.executable, "-m", "tests.benchmarks.memory", *arguments]
            peaks.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
            print(f"| {count:,} images | {peaks[-1]:.0f} MB |", flush=True)
    print(f"\ngrowth from the smaller shard to the larger: {peaks[1] - peaks[0]:.0f} MB")


if __name__ == "__main__":
    main()
