"""A real Ray cluster of several nodes on 127.0.0.1, and workers that misbehave, for tests and benchmarks."""

import io
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from reinforce.captioners import CaptionRequest, FakeCaptioner
from reinforce.config import BuildConfig
from reinforce.plan import BuildOutline, BuildPlan
from reinforce.runners import BuildSummary
from reinforce.runners.asked import find_sentences
from reinforce.runners.command import run_outline
from reinforce.runners.failures import Failure
from reinforce.runners.worker import Job, Lease, ShardWorker
from reinforce.shard_report import ShardReport
from reinforce.storage import Carried, find_shards, open_store
from tests.fakes import fake_plan

OBJECT_STORE = 80 * 1024**2


class RayNodes:
    """A running cluster. Node 0 is the head and holds no worker."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(initialize_head=True, head_node_args=self._arguments(0, {}))
        self.nodes: list[Any] = []

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add(self, num_cpus: int = 1, **resources: float) -> str:
        """Adds a node; returns its id."""
        node = self._cluster.add_node(**self._arguments(num_cpus, resources))
        self.nodes.append(node)
        return str(node.node_id)

    def remove(self, index: int = 0, *, graceful: bool = False) -> None:
        """Takes a node away; not gracefully, its processes are killed."""
        self._cluster.remove_node(self.nodes.pop(index), allow_graceful=graceful)

    def close(self) -> None:
        self._cluster.shutdown()

    def _arguments(self, num_cpus: int, resources: dict[str, float]) -> dict[str, Any]:
        return {
            "num_cpus": num_cpus,
            "resources": resources,
            "node_ip_address": "127.0.0.1",
            "object_store_memory": OBJECT_STORE,
            "include_dashboard": False,
        }


@contextmanager
def ray_nodes(*cpus: int) -> Iterator[RayNodes]:
    """A cluster whose nodes have so many cores."""
    cluster = RayNodes()
    try:
        for count in cpus:
            cluster.add(count)
        yield cluster
    finally:
        cluster.close()


@contextmanager
def connected_to(cluster: RayNodes) -> Iterator[None]:
    """This process connected to a cluster, as a driver on one of its nodes is."""
    import ray

    ray.init(address=cluster.address, _node_ip_address="127.0.0.1", log_to_driver=False, logging_level="error")
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def environ(values: dict[str, str]) -> Iterator[None]:
    """These environment variables, for processes that start meanwhile too."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


CONFIG = {
    "batch_size": 4,
    "workers": 1,
    "views": {"count": 2, "hflip": 0.5},
    "teachers": {"large": {"model": "fake"}, "small": {"model": "fake"}},
    "captioners": {"fake": {"kind": "transformers", "model": "fake"}},
    "banks": {"things": {"labels": ["cat", "boat"]}},
    "ray": {"num_cpus": 1},
}
"""The recipe of `fake_plan`, with names for its models, as a driver sees it that loads none."""


def load_fakes(config: BuildConfig, **narrowing: Any) -> BuildPlan:
    """Stands in for `load_plan`: the plan of `tests.fakes`, with a captioner that obeys the stem."""
    captioners = [ObedientCaptioner("fake", image_size=16)]
    return fake_plan(config.model_dump(exclude_unset=True), captioners=captioners, **narrowing)


class ObedientCaptioner(FakeCaptioner):
    """Dies, hangs or fails on shards that are called so; takes its time on the others if told to."""

    def caption(self, requests: Sequence[CaptionRequest]) -> list[list[str]]:
        stem = requests[0].stem
        if "deadly" in stem:
            os.kill(os.getpid(), signal.SIGKILL)
        if "endless" in stem:
            time.sleep(3600)
        if "faulty" in stem:
            raise RuntimeError("this shard cannot be captioned")
        time.sleep(1 if "slow" in stem else float(os.environ.get("REINFORCE_TEST_PAUSE_S", "0")))
        return super().caption(requests)


class FakeWorker(ShardWorker):
    """A worker with fake models."""

    def __init__(self, job: Job, carried: Carried) -> None:
        super().__init__(replace(job, load=load_fakes), carried)


def is_broken_here() -> bool:
    """Whether this worker's node has the resource `broken`."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    return any(found["NodeID"] == node and "broken" in found["Resources"] for found in ray.nodes())


class NodeBoundWorker(FakeWorker):
    """Cannot start on a broken node, and fails there at once."""

    def start(self) -> dict[str, Any] | Failure:
        return Failure("other", "driver mismatch") if is_broken_here() else super().start()


class FailingWorker(FakeWorker):
    """Starts on a broken node, and then fails every shard there, fast."""

    def build(self, lease: Lease) -> ShardReport | Failure:
        if is_broken_here():
            return Failure("other", "RuntimeError: an illegal memory access was encountered")
        return super().build(lease)


def run_on_ray(
    shards: Path | str,
    output: Path | str,
    *,
    config: dict[str, Any] | None = None,
    worker_class: type = FakeWorker,
    address: str = "auto",
    console: Console | None = None,
    **options: Any,
) -> BuildSummary:
    """Builds on a cluster with fake models, as `reinforce build --ray` does with real ones."""
    root, refs = find_shards([str(shards)])
    outline = BuildOutline(BuildConfig.model_validate(CONFIG | (config or {})))
    store = open_store(str(output), create=True)
    sentences = find_sentences(outline.config, store)
    return run_outline(
        outline,
        [*refs, *sentences.refs],
        store,
        source_root=root,
        corpus_roots=sentences.roots,
        address=address,
        console=console or Console(file=io.StringIO()),
        worker_class=worker_class,
        **options,
    )
