"""Offline builder of reinforced distillation datasets for CLIP-style models.

`build` is what the command `reinforce build` calls, `train_student` what `reinforce train-student` does; `open_dataset`
reads what a build wrote. They load on first use, so that importing the package, and `reinforce --help`, need neither
torch nor Arrow.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reinforce.runners import build
    from reinforce.shards.dataset import Dataset, open_dataset
    from reinforce.student.train import train_student

__all__ = ["Dataset", "build", "open_dataset", "train_student"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "build":
        from reinforce.runners import build

        return build
    if name in ("Dataset", "open_dataset"):
        from reinforce.shards import dataset

        return getattr(dataset, name)
    if name == "train_student":
        from reinforce.student.train import train_student

        return train_student
    raise AttributeError(f"module 'reinforce' has no attribute {name!r}")
