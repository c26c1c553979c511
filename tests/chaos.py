"""Everything that can go wrong in one build, in random order: workers, nodes and drivers die, the store misbehaves.

    outcome = run_chaos(folder, seed=7, num_events=30)

A real Ray cluster, a real S3 server behind a proxy, a driver in a process of its own that is started again whenever it
ends early, as a scheduler would. The seed decides the order and the moments of the events.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reinforce.config import BuildConfig
from reinforce.shards.dataset import open_dataset
from reinforce.storage import open_store
from tests.clusters import CONFIG, RayNodes, environ, load_fakes, ray_nodes
from tests.fakes import files_of, run
from tests.s3_server import ACCESS_KEY, SECRET_KEY, Fault, FaultyProxy, serve_s3
from tests.tars import pairs, write_tar

EVENTS = ("kill_worker", "remove_node", "add_node", "kill_driver", "storm")
STORM: tuple[Fault, ...] = ("error", "unavailable", "slow", "truncate", "reset", "error_after", "reset_after")
NUM_SAMPLES = 12
PATIENCE = 60
"""Half seconds without a worker before the next event comes all the same."""
URIS = ("s3://source/shards", "s3://output/dataset")


@dataclass
class StormyProxy(FaultyProxy):
    """Plays a random fault on one request in two for as long as a storm lasts."""

    generator: random.Random = field(default_factory=random.Random)
    storm_until: float = 0.0
    num_faults: int = 0

    def next_fault(self, method: str) -> Fault | None:
        if time.monotonic() > self.storm_until or self.generator.random() < 0.5:
            return None
        self.num_faults += 1
        return self.generator.choice(STORM)


@dataclass
class Outcome:
    """What a run with chaos left behind."""

    events: Counter[str]
    num_drivers: int
    num_faults: int
    files: dict[str, bytes]
    keys: Counter[str]
    recomputed: list[str]
    """Sources fetched again after all their files had been committed."""
    others: list[str]
    """Objects that are neither files of the dataset nor logs of its runs."""


@dataclass
class _Chaos:
    """The machinery of one run."""

    cluster: RayNodes
    proxy: StormyProxy
    generator: random.Random
    log: Path
    driver: subprocess.Popen[bytes] | None = None
    num_drivers: int = 0
    num_idle: int = 0
    events: Counter[str] = field(default_factory=Counter)

    def keep_driving(self) -> bool:
        """Starts the driver if it is not running; whether one ended with nothing left to do."""
        if self.driver is not None and self.driver.poll() == 0:
            return True
        if self.driver is None or self.driver.poll() is not None:
            self.num_drivers += 1
            command = [sys.executable, "-m", "tests.chaos", self.cluster.address, *URIS]
            with self.log.open("ab") as log:
                self.driver = subprocess.Popen(command, stdout=log, stderr=log)
        return False

    def disturb(self) -> None:
        """One event, when there is something to disturb."""
        if not _workers() and self.num_idle < PATIENCE:
            self.num_idle += 1
            return
        self.num_idle = 0
        time.sleep(self.generator.uniform(0.5, 5))
        possible = [event for event in EVENTS if self._can(event)]
        if not possible:
            return
        event = self.generator.choice(possible)
        getattr(self, f"_{event}")()
        self.events[event] += 1
        print(f"{time.strftime('%H:%M:%S')} {event}", flush=True)

    def _can(self, event: str) -> bool:
        num_nodes = len(self.cluster.nodes)
        return {
            "kill_worker": bool(_workers()),
            "remove_node": num_nodes > 1,
            "add_node": num_nodes < 3,
            # A driver with no worker yet has nothing to lose, and the build would never get on.
            "kill_driver": bool(_workers()) and self.driver is not None and self.driver.poll() is None,
            "storm": bool(_workers()),
        }[event]

    def _kill_worker(self) -> None:
        os.kill(self.generator.choice(_workers()), signal.SIGKILL)

    def _remove_node(self) -> None:
        self.cluster.remove(self.generator.randrange(len(self.cluster.nodes)), graceful=self.generator.random() < 0.3)

    def _add_node(self) -> None:
        self.cluster.add(1)

    def _kill_driver(self) -> None:
        assert self.driver is not None
        self.driver.send_signal(self.generator.choice([signal.SIGKILL, signal.SIGTERM]))
        self.driver.wait()

    def _storm(self) -> None:
        self.proxy.storm_until = time.monotonic() + self.generator.uniform(1, 4)


def check(outcome: Outcome, folder: Path, num_shards: int) -> None:
    """Compares with an undisturbed build on this machine: every key once, the same bytes, nothing twice, no rest."""
    run(load_fakes(BuildConfig.model_validate(CONFIG)), folder / "in", folder / "undisturbed")
    expected = files_of(folder / "undisturbed")
    del expected["dataset.json"], outcome.files["dataset.json"]  # it names the source root
    assert outcome.files.keys() == expected.keys()
    assert [path for path in expected if outcome.files[path] != expected[path]] == []
    assert len(outcome.keys) == num_shards * NUM_SAMPLES
    assert set(outcome.keys.values()) == {1}
    assert outcome.recomputed == []
    assert outcome.others == []


def run_chaos(folder: Path, *, seed: int, num_events: int, num_shards: int, pause_s: float) -> Outcome:
    """Builds `num_shards` while `num_events` things go wrong, then lets it end in peace."""
    generator = random.Random(seed)
    with ExitStack() as stack:
        server = stack.enter_context(serve_s3())
        proxy = stack.enter_context(StormyProxy(server.endpoint, generator=random.Random(seed + 1)))
        stack.enter_context(environ(environment(proxy.endpoint, pause_s)))
        source = write_source(folder, num_shards)
        for bucket in ("source", "output"):
            server.make_bucket(bucket)
        for path in sorted(source.glob("*.tar")):
            server.client().upload_file(str(path), "source", f"shards/{path.name}")
        cluster = stack.enter_context(ray_nodes(1, 1))
        chaos = _Chaos(cluster, proxy, generator, folder / "driver.log")
        try:
            is_over = False
            while not is_over:
                is_over = chaos.keep_driving()
                if chaos.events.total() < num_events:
                    assert not is_over, f"the build ended after {chaos.events.total()} events: give it more shards"
                    chaos.disturb()
                time.sleep(0.5)
        finally:
            if chaos.driver is not None:
                chaos.driver.kill()
        return _outcome(chaos, server.client())


def write_source(folder: Path, num_shards: int) -> Path:
    for index in range(num_shards):
        write_tar(folder / "in" / f"{index:05d}.tar", pairs(NUM_SAMPLES, start=NUM_SAMPLES * index))
    return folder / "in"


def environment(endpoint: str, pause_s: float) -> dict[str, str]:
    """What the driver and its workers find."""
    return {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_CONFIG_FILE": "/nonexistent/config",
        "REINFORCE_TEST_PAUSE_S": str(pause_s),
    }


def _workers() -> list[int]:
    """The process ids of the actors that are running."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if path.read_bytes().startswith(b"ray::FakeWorker"):
                found.append(int(path.parent.name))
    return sorted(found)


def _outcome(chaos: _Chaos, client: Any) -> Outcome:
    store = open_store(URIS[1])
    listed = [
        found["Key"]
        for page in client.get_paginator("list_objects_v2").paginate(Bucket="output")
        for found in page["Contents"]
    ]
    paths = [key.removeprefix("dataset/") for key in listed]
    files = {path: store.read(path) for path in paths if not path.startswith("runs/")}
    dataset = open_dataset(URIS[1])
    keys = Counter(key for stem in dataset.stems for key in dataset.spine(stem).column("key").to_pylist())
    known = ("samples/", "captions/", "embeddings/", "modalities/", "banks/", "dataset.json", "runs/")
    others = [path for path in paths if not path.startswith(known) or "#" in path or "probe" in path]
    return Outcome(
        chaos.events, chaos.num_drivers, chaos.proxy.num_faults, files, keys, _recomputed(chaos.proxy), others
    )


def _recomputed(proxy: FaultyProxy) -> list[str]:
    """Shards whose source was asked for a second or more after the last of their files was created."""
    committed: dict[str, float] = {}
    for request in proxy.requests:
        if request.method == "PUT" and request.status == 200 and request.path.endswith(".parquet"):
            committed[Path(request.path).stem] = request.at
    return [
        request.path
        for request in proxy.requests
        if request.method == "GET"
        and request.path.endswith(".tar")
        and request.at > committed[Path(request.path).stem] + 1
    ]


def main() -> None:
    """The driver: a build on the cluster at ADDRESS from SOURCE to OUTPUT [with so many workers], with fake models."""
    from rich.console import Console

    from reinforce.cli import terminate_as_interrupt
    from tests.clusters import run_on_ray

    terminate_as_interrupt()
    address, source, output, *more = sys.argv[1:]
    max_workers = int(more[0]) if more else None
    console = Console(stderr=True, width=200)
    summary = run_on_ray(source, output, address=address, max_workers=max_workers, console=console)
    sys.exit(1 if summary.failed or summary.stopped else 0)


if __name__ == "__main__":
    main()
