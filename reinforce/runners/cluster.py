"""A Ray cluster: reached or started, its nodes, and how many workers each of them holds."""

import math
import os
import signal
import socket
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from reinforce.config import BuildConfig, ConfigError

LOCAL = "local"
"""The address that starts a cluster on this machine, for this run."""

ANY = "any"
"""The address that stands for the cluster this runs on, if it runs on one, else a local one."""


_CONNECT_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Needs:
    """What one worker reserves, and how many threads decode and render in it."""

    num_cpus: float
    num_gpus: float
    memory: int | None
    accelerator_type: str | None
    num_prepare: int

    def options(self) -> dict[str, Any]:
        """As the options of a Ray actor."""
        options: dict[str, Any] = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}
        if self.memory:
            options["memory"] = self.memory
        if self.accelerator_type:
            options["accelerator_type"] = self.accelerator_type
        return options

    def resources(self) -> dict[str, float]:
        """As the resources of a Ray node."""
        needed = {"CPU": self.num_cpus, "GPU": self.num_gpus, "memory": float(self.memory or 0)}
        if self.accelerator_type:
            needed[f"accelerator_type:{self.accelerator_type}"] = 0.001
        return {name: amount for name, amount in needed.items() if amount > 0}

    def slots(self, has: Mapping[str, float]) -> int:
        """How many workers find room in so much of each resource."""
        return min(math.floor(has.get(name, 0) / amount + 1e-6) for name, amount in self.resources().items())

    def __str__(self) -> str:
        return ", ".join(f"{name} {amount:g}" for name, amount in self.resources().items())


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Connects to a cluster, or starts one; leaves it as it was found. Raises `ConfigError` if there is none."""
    import ray

    if ray.is_initialized():
        yield
        return
    if address.startswith("ray://"):
        raise ConfigError(f"--ray {address}: run on the cluster itself, with `ray job submit`, and say --ray auto")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    on_terminate = signal.getsignal(signal.SIGTERM)
    found = None if address == LOCAL else _find(address)
    try:
        if found is None:
            _start_local(options)
        else:
            ray.init(address=found, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(f"--ray {address}: {' '.join(str(error).split())[:200]}") from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_terminate)  # Ray's own prints a stack trace
    try:
        yield
    finally:
        ray.shutdown()


def needs_of(config: BuildConfig, nodes: Collection[dict[str, Any]]) -> Needs:
    """What a worker of this recipe reserves on these nodes; what the recipe leaves open follows from them."""
    asked = config.ray
    num_gpus = asked.num_gpus
    if num_gpus is None:
        has_gpus = any(node["Resources"].get("GPU") for node in nodes)
        num_gpus = 1.0 if config.device != "cpu" and has_gpus else 0.0
    num_cpus = asked.num_cpus or _cores_of_worker(config, num_gpus, nodes)
    num_prepare = config.workers or max(1, int(num_cpus) - config.threads)
    return Needs(num_cpus, num_gpus, asked.memory, asked.accelerator_type, num_prepare)


def alive_nodes() -> list[dict[str, Any]]:
    """The nodes of the cluster as `ray.nodes()` has them, with what of their resources is free as `Available`."""
    import ray
    from ray._private.state import available_resources_per_node

    available = available_resources_per_node()
    return [node | {"Available": available.get(node["NodeID"], {})} for node in ray.nodes() if node["Alive"]]


def _cores_of_worker(config: BuildConfig, num_gpus: float, nodes: Collection[dict[str, Any]]) -> float:
    shares = [
        node["Resources"].get("CPU", 0) / (node["Resources"]["GPU"] / num_gpus)
        for node in nodes
        if num_gpus and node["Resources"].get("GPU")
    ]
    whole = math.floor(min(shares)) if shares else 0
    # Never more cores than the smallest node has: it would stay idle.
    largest = min((node["Resources"]["CPU"] for node in nodes if node["Resources"].get("CPU")), default=math.inf)
    return float(max(1, whole)) if num_gpus else min(float(config.threads + (config.workers or 1)), max(1.0, largest))


def _find(address: str) -> str | None:
    """HOST:PORT of a cluster that answers, None where `ANY` finds none. Ray itself would try for minutes."""
    from ray._private.services import canonicalize_bootstrap_address_or_die

    try:
        found: str = canonicalize_bootstrap_address_or_die("auto" if address == ANY else address)
        host, _, port = found.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        if address == ANY and not os.environ.get("RAY_ADDRESS"):
            return None
        reason = " ".join(str(error).split()).split(". Please")[0]
        raise ConfigError(f"--ray {address}: no cluster answers ({reason}); `ray status` shows one that does") from None
    return found


def _start_local(options: dict[str, Any]) -> None:
    import ray

    cores = len(os.sched_getaffinity(0))
    ray.init(
        address="local",  # whatever else runs here, or is named by the environment
        num_cpus=cores,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        object_store_memory=128 * 1024**2,
        **options,
    )
