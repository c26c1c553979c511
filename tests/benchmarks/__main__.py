"""Runs every benchmark and prints its table: `make bench`. One by name: `python -m tests.benchmarks.fidelity`."""

import subprocess
import sys

BENCHMARKS = (
    "truth",
    "fidelity",
    "faults",
    "memory",
    "bookkeeping",
    "loss_memory",
    "step_cost",
    "sizing",
    "rendering",
    "overlap",
    "cpu_build",
    "captions",
    "label_pixels",
    "student_reader",
    "packed",
    "training_epoch",
    "selection",
    "sentence_selection",
    "forecast",
    "inspection",
    "deployment",
    "ray_s3",
    "scheduling",
    "chaos",
)

if __name__ == "__main__":
    for name in BENCHMARKS:
        print(f"\n## {name}\n", flush=True)
        subprocess.run([sys.executable, "-m", f"tests.benchmarks.{name}"], check=True)
