"""Time and peak memory of `reinforce inspect`: on 8,000 images of CIFAR-10, and over the files of 65,536 shards.

    python -m tests.benchmarks.inspection        (about 5 minutes on two cores, most of them to build CIFAR-10)

The small dataset is a build of ../shared by the CIFAR-10 recipe, left out where that is not. The large one is made: a
shard of 64 generated images is built with two fake teachers and a fake captioner, 8 files. The shards whose files an
inspection opens, every 64th, are true copies of it under their own stem; all others are hard links to the one shard,
which are listed and never opened, so `--full` would find fault with them. Each inspection is a process of its own. The
memory of one that does nothing but import what `inspect` imports stands beside it.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from reinforce.inspection.sampling import MOST_FOOTER_SHARDS
from reinforce.shards.schema import FOOTER_KEY, canonical_json
from tests.benchmarks.studies import REPOSITORY, SHARED
from tests.fakes import fake_plan, run
from tests.tars import image_bytes, write_tar

NUM_SHARDS = 65_536
NUM_IMAGES = 64
NUM_ROUNDS = 3
IMPORTS = "import reinforce.inspection.stats, reinforce.inspection.table"
INSPECT = "from reinforce.cli import app; app(standalone_mode=False)"
# What getrusage gives for a child begins with the memory of the process that it was forked from.
TELL_PEAK = "import sys; sys.stderr.write([l for l in open('/proc/self/status') if l.startswith('VmHWM')][0])"


def measured(script: str, arguments: Sequence[str]) -> tuple[float, float, float]:
    """Wall and CPU seconds and peak resident MB of a Python process."""
    start = time.monotonic()
    command = [sys.executable, "-c", f"{script}; {TELL_PEAK}", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert process.stderr is not None
    told = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, told
    return time.monotonic() - start, usage.ru_utime + usage.ru_stime, int(told.split()[-2]) / 1024


def show(name: str, script: str, *arguments: str) -> None:
    """The median times and the highest peak of a few rounds, as a row."""
    wall, cpu, peaks = zip(*(measured(script, arguments) for _ in range(NUM_ROUNDS)), strict=True)
    times = f"{statistics.median(wall):.1f} s | {statistics.median(cpu):.1f} s"
    print(f"| {name} | {times} | {max(peaks):.0f} MB |", flush=True)


def build_cifar10(output: Path) -> None:
    command = ["build", "--shards", str(SHARED / "data/cifar10/train"), "--recipe", "pipelines/cifar10.yaml"]
    command = [sys.executable, "-m", "reinforce", *command, "--output", str(output)]
    subprocess.run(command, check=True, capture_output=True, cwd=REPOSITORY)


def make_large(folder: Path) -> Path:
    """A dataset of 65,536 shards, of which those that are opened are real."""
    members = [(f"{i:03d}.png", image_bytes(i)) for i in range(NUM_IMAGES)]
    write_tar(folder / "source/one.tar", members + [(f"{i:03d}.txt", b"a caption") for i in range(NUM_IMAGES)])
    dataset = folder / "dataset"
    assert not run(fake_plan(), folder / "source", dataset).failed
    stems = [f"{number:05d}" for number in range(NUM_SHARDS)]
    for path in list(dataset.rglob("one.parquet")):
        table, footer = pq.read_table(path), json.loads(pq.read_metadata(path).metadata[FOOTER_KEY])
        for number, stem in enumerate(stems):
            target = path.with_name(f"{stem}.parquet")
            if number % (NUM_SHARDS // MOST_FOOTER_SHARDS):
                os.link(path, target)
            else:
                rows = table.replace_schema_metadata({FOOTER_KEY: canonical_json(footer | {"stem": stem})})
                pq.write_table(rows, target, compression="zstd", write_page_checksum=True)
        path.unlink()
    return dataset


def main() -> None:
    print("| | time | CPU time | peak resident memory |\n|---|---|---|---|")
    show("what it imports", IMPORTS)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if (SHARED / "data/cifar10").is_dir():
            build_cifar10(folder / "cifar10")
            for options in ([], ["--full"]):
                name = " ".join(["8,000 samples, 8 shards, 4 signals", *options])
                show(name, INSPECT, "inspect", str(folder / "cifar10"), *options)
        dataset = make_large(folder / "large")
        num_files = sum(1 for _ in dataset.rglob("*.parquet"))
        show(f"{NUM_SHARDS:,} shards, {num_files:,} files", INSPECT, "inspect", str(dataset))


if __name__ == "__main__":
    main()
