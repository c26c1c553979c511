"""Everything a run needs to go on as if it had not stopped, in one safetensors file that is replaced atomically.

Weights, the moving average, the optimizer's moments, and every process's random state and place in its stream. No
pickle: what is not a tensor is JSON in the file's metadata.
"""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from reinforce.config import ConfigError
from reinforce.student.batch import Position
from reinforce.student.best import Best
from reinforce.student.mining import Triplets
from reinforce.student.tensors import save_tensors

CHECKPOINT_FILE = "checkpoint.safetensors"

_TRIPLETS = ("anchors", "positives", "negatives")


@dataclass(frozen=True)
class Progress:
    """How far a run is. `identity` is what must be the same for it to go on."""

    step: int
    positions: list[list[Position]]
    """By rank, then by worker."""
    next_workers: list[int]
    """By rank: the worker whose batch comes next."""
    identity: dict[str, Any]
    best: Best | None = None
    """The evaluation whose weights lie beside the checkpoint, if any are kept."""
    sentences: list[Position] = field(default_factory=list)
    """By rank, in the stream of sentences."""


@dataclass(frozen=True)
class Trainables:
    """What changes while training."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None


def save_checkpoint(
    path: Path,
    trainables: Trainables,
    progress: Progress,
    rng_states: list[list[Tensor]],
    triplets: Triplets | None = None,
) -> None:
    """Replaces the checkpoint at `path`. Whoever kills the process at any moment leaves the old or the new one.

    `triplets` are those that the steps are walking through.
    """
    tensors = {f"module/{name}": tensor for name, tensor in trainables.module.state_dict().items()}
    if trainables.average is not None:
        tensors |= {f"average/{name}": tensor for name, tensor in trainables.average.state_dict().items()}
    for index, moments in trainables.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": torch.as_tensor(value) for name, value in moments.items()}
    for rank, states in enumerate(rng_states):
        tensors |= {f"rng/{rank}/{index}": state for index, state in enumerate(states)}
    if triplets is not None:
        tensors |= {f"triplets/{name}": torch.from_numpy(getattr(triplets, name)) for name in _TRIPLETS}
        tensors["triplets/samples_sha256"] = torch.tensor(list(triplets.samples_sha256), dtype=torch.uint8)
    # Tied weights share memory, which the format refuses.
    owned = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    partial = path.with_name(f"{path.name}.partial")
    save_tensors(owned, partial, metadata={"progress": json.dumps(asdict(progress))})
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def read_progress(path: Path) -> Progress:
    """How far the run of a checkpoint is; raises `ConfigError` if the file is not one."""
    try:
        with safe_open(path, "pt") as file:
            content = json.loads(file.metadata()["progress"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"--resume: {path} is no checkpoint ({' '.join(str(error).split())[:100]})") from None
    positions = [[Position(**position) for position in of_rank] for of_rank in content.pop("positions")]
    best = content.pop("best", None)
    sentences = [Position(**position) for position in content.pop("sentences", [])]
    return Progress(positions=positions, best=best and Best(**best), sentences=sentences, **content)


def load_checkpoint(path: Path, trainables: Trainables, rank: int) -> list[Tensor]:
    """Puts weights, average and moments back; returns the random state of process `rank`."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    trainables.module.load_state_dict(_below("module/", tensors))
    if trainables.average is not None:
        trainables.average.load_state_dict(_below("average/", tensors))
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _below("optimizer/", tensors).items():
        index, _, kind = name.partition("/")
        moments.setdefault(int(index), {})[kind] = tensor
    state = trainables.optimizer.state_dict()
    trainables.optimizer.load_state_dict({"state": moments, "param_groups": state["param_groups"]})
    states = _below(f"rng/{rank}/", tensors)
    return [states[str(index)] for index in range(len(states))]


def load_triplets(path: Path) -> Triplets | None:
    """The triplets of a checkpoint; those that mining skipped were counted before."""
    with safe_open(path, "pt") as file:
        if "triplets/anchors" not in file.keys():  # noqa: SIM118  # no mapping
            return None
        indices = {name: file.get_tensor(f"triplets/{name}").numpy() for name in _TRIPLETS}
        return Triplets(**indices, samples_sha256=bytes(file.get_tensor("triplets/samples_sha256").tolist()))


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
