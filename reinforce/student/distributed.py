"""The processes of one run, as torchrun or Ray Train start them; one process where neither did."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from reinforce.weights import resolve_device


@dataclass(frozen=True)
class Processes:
    """This process among those of the run, and its device."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """A small picklable value of every process, by rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Returns when every process has come here."""
        if self.world_size > 1:
            dist.barrier()


@contextmanager
def join_processes(device: str) -> Iterator[Processes]:
    """Joins the group that torchrun's environment describes, and leaves it at the end; takes part in one that is there.

    Raises `ModelError`.
    """
    if dist.is_initialized():
        # Who made the group has chosen the device too, and leaves the group.
        if device == "auto" and dist.get_backend() == "gloo":
            device = "cpu"
        resolved = resolve_device(device)
        if resolved.type == "cuda" and resolved.index is None:
            resolved = torch.device("cuda", torch.cuda.current_device())
        yield Processes(dist.get_rank(), dist.get_world_size(), resolved)
        return
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Processes(0, 1, resolve_device(device))
        return
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    own = f"cuda:{local_rank}" if device in ("auto", "cuda") and torch.cuda.is_available() else device
    resolved = resolve_device(own)
    if resolved.type == "cuda":
        torch.cuda.set_device(resolved)
    dist.init_process_group("nccl" if resolved.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), world_size, resolved)
    finally:
        dist.destroy_process_group()
