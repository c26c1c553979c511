"""What every test runs under: no hub, one torch thread, nothing written beside the repository."""

import os
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

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real images and two small real teachers, kept out of the repository."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "data" / "cifar10").is_dir():
        pytest.skip("real images are not here: ../shared/data and ../shared/teachers")
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    """A real S3 server. `use_test_credentials` before it is used."""
    with serve_s3() as running:
        yield running


@pytest.fixture
def proxy(server: S3Server) -> Iterator[FaultyProxy]:
    """A proxy in front of the server, which misbehaves as planned."""
    with FaultyProxy(server.endpoint) as running:
        yield running


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
