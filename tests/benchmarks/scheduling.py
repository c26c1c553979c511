"""What scheduling costs: many tiny shards with nothing to do, and sleeping workers against the ideal.

    python -m tests.benchmarks.scheduling [--shards 10000] [--nodes 8] [--workers-a-node 4]

First shards that take no time at all: shards a second, CPU seconds and peak memory of the driver. Then as many workers
as asked for, each asleep for as long as its shard is worth: efficiency is the sleep of all shards, over the number of
workers times the wall time from when all of them are ready to the last result, the tail included.
"""

import argparse
import io
import os
import random
import resource
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from rich.console import Console

from reinforce.config import BuildConfig
from reinforce.runners.run_ray import run_ray
from reinforce.runners.worker import Job, Lease, Status
from reinforce.shard_report import ShardReport
from reinforce.storage import Carried, ShardRef, open_store
from tests.clusters import connected_to, ray_nodes

SHARDS_A_WORKER = 40
LONGEST_MS, SHORTEST_MS = 3000, 1000


class SleepingWorker:
    """Sleeps a millisecond for each byte of a shard, one shard at a time, once as many workers are ready as told to."""

    def __init__(self, job: Job, carried: Carried) -> None:
        assert job.limit_samples is not None
        self._folder, self._num_workers = Path(job.output.removeprefix("file://")) / "workers", job.limit_samples
        self._lock = threading.Lock()
        self._num_done = 0

    def start(self) -> dict[str, Any]:
        self._folder.mkdir(exist_ok=True)
        (self._folder / str(os.getpid())).touch()
        return {}

    def build(self, lease: Lease) -> ShardReport:
        with self._lock:
            while len(list(self._folder.glob("[0-9]*"))) < self._num_workers:
                time.sleep(0.1)
            with suppress(FileExistsError):
                (self._folder / "ready").touch(exist_ok=False)
            time.sleep(lease.size / 1000)
            self._num_done += 1
            (self._folder / str(os.getpid())).touch()
        return ShardReport(lease.stem, num_samples=1)

    def status(self) -> Status:
        return Status(progress=(self._num_done,))

    def renew(self, carried: Carried) -> None:
        pass


def run(sizes: Sequence[int], num_workers: int) -> tuple[float, float]:
    """Wall seconds from when all workers are ready, and CPU seconds of the driver, for shards of so many ms."""
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        refs = [ShardRef(store, f"{index:05d}.tar", f"{index:05d}", size) for index, size in enumerate(sizes)]
        config = BuildConfig.model_validate({"ray": {"num_cpus": 1}})
        job = Job(config, store.uri, store.uri, limit_samples=num_workers)
        cpu_s = time.process_time()
        console = Console(file=io.StringIO())
        summary = run_ray(refs, job, store, console, address="auto", uris=[], worker_class=SleepingWorker)
        cpu_s = time.process_time() - cpu_s
        assert summary.done.num_samples == len(sizes)
        touched = {path.name: path.stat().st_mtime for path in (Path(folder) / "workers").iterdir()}
        return max(touched.values()) - touched["ready"], cpu_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--workers-a-node", type=int, default=4)
    args = parser.parse_args()
    with ray_nodes(4) as cluster, connected_to(cluster):
        wall_s, cpu_s = run([0] * args.shards, 4)
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{args.shards:,} shards that take no time, 4 workers: {args.shards / wall_s:,.0f} shards/s, driver "
            f"{cpu_s:.1f} CPU s ({1e6 * cpu_s / args.shards:,.0f} us a shard), {peak_mb:,.0f} MB at its peak",
            flush=True,
        )
    num_workers = args.nodes * args.workers_a_node
    generator = random.Random(0)
    sizes = [generator.randint(SHORTEST_MS, LONGEST_MS) for _ in range(SHARDS_A_WORKER * num_workers)]
    with ray_nodes(*[args.workers_a_node] * args.nodes) as cluster, connected_to(cluster):
        assert ray.cluster_resources()["CPU"] == num_workers
        wall_s, cpu_s = run(sizes, num_workers)
    efficiency = sum(sizes) / 1000 / num_workers / wall_s
    print(
        f"{num_workers} workers on {args.nodes} nodes, {len(sizes):,} shards of {SHORTEST_MS / 1000:g} to "
        f"{LONGEST_MS / 1000:g} s: {wall_s:.1f} s, efficiency {efficiency:.3f}, driver {cpu_s:.1f} CPU s"
    )


if __name__ == "__main__":
    main()
