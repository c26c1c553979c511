"""What every test runs under: no hub, one torch thread, nothing written beside the repository."""

import gc
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from tests.s3_server import FaultyProxy, S3Server, serve_s3

if TYPE_CHECKING:
    from tests.clusters import RayNodes

os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    # What a shell starts in the background ignores it, and so would every command that a test interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).parent.parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever needs the cluster or torchrun has the machine for itself."""
    for item in items:
        if {"nodes", "of_torchrun"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.serial)


def pytest_collection_finish() -> None:
    """What libraries hold lives to the end: going through it takes every collection of garbage 0.3 s."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup() -> None:
    torch.set_num_threads(1)  # a test before may have said otherwise


def pytest_unconfigure() -> None:
    gc.unfreeze()  # some libraries report what is left at the end


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real images and two small real teachers, kept out of the repository."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "data" / "cifar10").is_dir():
        pytest.skip("real images are not here: ../shared/data and ../shared/teachers")
    return folder


@pytest.fixture(scope="session")
def server() -> Iterator[S3Server]:
    """A real S3 server with buckets of all tests. `use_test_credentials` before it is used."""
    with serve_s3() as running:
        yield running


@pytest.fixture
def proxy(server: S3Server) -> Iterator[FaultyProxy]:
    """A proxy in front of the server, which misbehaves as planned."""
    with FaultyProxy(server.endpoint) as running:
        yield running


@pytest.fixture(scope="session")
def of_torchrun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset in `reinforced`, and in `run` what two processes of torchrun made of it. Read only."""
    from tests.students import TORCHRUN, build_dataset, recipe, torchrun

    folder = tmp_path_factory.mktemp("torchrun")
    torchrun(build_dataset(folder), folder / "run", recipe(**TORCHRUN))
    return folder


@pytest.fixture(scope="session")
def nodes() -> "Iterator[RayNodes]":
    """A real Ray cluster of two nodes with a core each. Leave it as it was."""
    from tests.clusters import ray_nodes

    with ray_nodes(1, 1) as running:
        yield running


@pytest.fixture(scope="module")
def cluster(nodes: "RayNodes") -> "Iterator[RayNodes]":
    """The same, and this process connected to it."""
    from tests.clusters import connected_to

    with connected_to(nodes):
        yield nodes
