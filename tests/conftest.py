"""What every test runs under: no hub, one torch thread, nothing written beside the repository."""

import os
from pathlib import Path

import pytest
import torch

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
