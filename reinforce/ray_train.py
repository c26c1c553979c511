"""`reinforce train-student --ray`: the processes of one training run, started by Ray Train instead of torchrun.

They run the same loop, which knows nothing of Ray. When a process or its node is lost, all are started again from the
last checkpoint. The driver shows what the first process says, and hands the credentials it has to all of them.
"""

import io
import math
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from reinforce.config import ConfigError, Recipe, StudentConfig
from reinforce.storage import Carried, accept, carry, open_store

if TYPE_CHECKING:
    from reinforce.runners.cluster import Needs
    from reinforce.student.train import TrainingSummary

MAX_RESTARTS = 3
"""Starts after a loss, with no checkpoint in between."""

_POLL_INTERVAL_S = 0.5


def train_on_ray(
    dataset: str,
    output: str | Path,
    recipe: Recipe,
    *,
    address: str,
    num_workers: int | None = None,
    shards: Sequence[str] = (),
    root: str | None = None,
    select: str | None = None,
    resume: bool = False,
    console: Console | None = None,
) -> "TrainingSummary":
    """Trains as `train_student` does, in `num_workers` processes on a cluster; default: one for each of its GPUs.

    `output` must be one folder for all nodes. Raises what `train_student` raises, and `TrainingError` when processes
    keep getting lost.
    """
    from reinforce.runners.cluster import alive_nodes, connected
    from reinforce.student.train import student_config

    config = student_config(recipe)
    uris = [dataset, *shards, *(uri for uri in (root, select) if uri), *_recorded_root(dataset, root)]
    uris += config.evaluation.shards if config.evaluation else ()
    settings = {
        "dataset": _located(dataset),
        "output": str(Path(output).resolve()),
        "recipe": recipe,
        "shards": [_located(uri) for uri in shards],
        "root": _located(root) if root else None,
        "select": _located(select) if select else None,
    }
    console = console or Console(stderr=True)
    carried = carry(uri for uri in uris if "://" in uri)
    with connected(address):
        needs = _needs_of(config, alive_nodes())
        slots = sum(needs.slots(node["Resources"]) for node in alive_nodes())
        count = num_workers or (max(1, slots) if needs.num_gpus else 1)
        if slots < count:
            _say(console, f"waiting for room: {count} processes, each {needs}; there is room for {slots}\n")
        return _restarted(settings, carried, needs, count, resume=resume, console=console)


def _restarted(
    settings: dict[str, Any], carried: Carried, needs: "Needs", count: int, *, resume: bool, console: Console
) -> "TrainingSummary":
    """The run, started again from its checkpoint for as long as that moves on."""
    from reinforce.student.run import TrainingError

    step, num_losses = _step_of(settings["output"]), 0
    while True:
        try:
            return _run(settings | {"resume": resume}, carried, needs, count, console)
        except _LostError as error:
            reached, resume = _step_of(settings["output"]), True
            num_losses = 1 if reached > step else num_losses + 1
            step = reached
            if num_losses > MAX_RESTARTS:
                raise TrainingError(
                    f"{error}, {num_losses} times with no checkpoint in between; look at the log of its node, or lower "
                    "student.checkpoint_every"
                ) from None
            _say(console, f"{error}; all start again from step {step:,}\n")


class _LostError(Exception):
    """A process of the run is gone; one line."""


def _run(settings: dict[str, Any], carried: Carried, needs: "Needs", count: int, console: Console) -> "TrainingSummary":
    """One start of all processes, to the end of the run or of one of them."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    desk = ray.remote(_Desk).options(num_cpus=0, scheduling_strategy=here).remote(carried)
    folder = tempfile.mkdtemp(prefix="reinforce-train-")
    ended: list[Any] = []
    # In a thread: Ray Train would put its own handler in the place of Ctrl-C's.
    thread = threading.Thread(
        target=_fit, args=(_trainer(settings, desk, needs, count, folder).fit, ended), name="fit", daemon=True
    )
    thread.start()
    try:
        while thread.is_alive():
            thread.join(_POLL_INTERVAL_S)
            _say(console, ray.get(desk.take.remote()))
        _say(console, ray.get(desk.take.remote()))
    finally:
        ray.kill(desk)
        shutil.rmtree(folder, ignore_errors=True)
    (result,) = ended
    if isinstance(result, Exception):
        raise _meaning(result)
    summary: TrainingSummary = result.return_value
    return summary


def _trainer(settings: dict[str, Any], desk: Any, needs: "Needs", count: int, folder: str) -> Any:
    try:
        from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
    except ImportError as error:
        raise ConfigError(
            f"--ray: training needs more of Ray ({error.name or 'ray[train]'}); install ray[train]"
        ) from None
    return TorchTrainer(
        _train,
        train_loop_config={"settings": settings, "desk": desk},
        scaling_config=ScalingConfig(
            num_workers=count,
            use_gpu=bool(needs.num_gpus),
            resources_per_worker={"CPU": needs.num_cpus, "GPU": needs.num_gpus},
        ),
        run_config=RunConfig(
            name="run",
            storage_path=folder,
            failure_config=FailureConfig(max_failures=0, max_preemption_failures=0),
            logging_config=LoggingConfig(log_level="CRITICAL"),
        ),
    )


def _train(config: dict[str, Any]) -> "TrainingSummary":
    """What each process does."""
    import ray

    desk = config["desk"]
    accept(ray.get(desk.carried.remote()))
    from reinforce.student.train import train_student

    return train_student(**config["settings"], console=Console(file=_Wire(desk)))


class _Desk:
    """An actor beside the driver: what processes are told by it, and what they say.

    Credentials are its argument, for those are in no log; a training's configuration may be.
    """

    def __init__(self, carried: Carried) -> None:
        self._carried, self._said = carried, ""

    def carried(self) -> Carried:
        return self._carried

    def say(self, text: str) -> None:
        self._said += text

    def take(self) -> str:
        text, self._said = self._said, ""
        return text


class _Wire(io.StringIO):
    """A file whose text arrives at the desk."""

    def __init__(self, desk: Any) -> None:
        super().__init__()
        self._desk = desk

    def flush(self) -> None:
        if text := self.getvalue():
            self._desk.say.remote(text)
            self.seek(0)
            self.truncate()


def _fit(fit: Callable[[], Any], ended: list[Any]) -> None:
    try:
        ended.append(fit())
    except Exception as error:
        ended.append(error)


def _meaning(error: Exception) -> Exception:
    """What the end of a run is for the driver: what a process raised for the user, a process lost, or a defect."""
    from ray.exceptions import RayError
    from ray.train import PreemptionError

    failures: list[Exception] = list(getattr(error, "worker_failures", {}).values())
    for failure in failures:
        if isinstance(failure, OSError) or type(failure).__module__.startswith("reinforce."):
            return failure
    if isinstance(error, PreemptionError):
        return _LostError("a node is taken away")
    if any(isinstance(failure, RayError) for failure in failures):
        return _LostError("a process of the training died")
    # The others notice first that one is gone: their collective operations break.
    if any(re.search("by peer|timed out|NCCL", str(failure), re.IGNORECASE) for failure in failures):
        return _LostError("a process of the training does not answer")
    return failures[0] if failures else error


def _needs_of(config: StudentConfig, nodes: Sequence[dict[str, Any]]) -> "Needs":
    """What a process reserves: a GPU with cores for its readers, if there is any GPU for it, else its threads."""
    from reinforce.runners.cluster import Needs

    with_gpus = [node["Resources"] for node in nodes if node["Resources"].get("GPU")]
    if config.device == "cpu" or not (with_gpus or config.device.startswith("cuda")):
        return Needs(float(config.threads), 0.0, None, None, 0)
    share = min((has.get("CPU", 0) / has["GPU"] for has in with_gpus), default=math.inf)
    cores = min(config.threads + config.data.workers, share)
    return Needs(float(max(1, math.floor(cores))), 1.0, None, None, 0)


def _recorded_root(dataset: str, root: str | None) -> list[str]:
    """Where the dataset says that its source is, if it is read from there."""
    from reinforce.shards.dataset import DATASET_FILE, read_document

    document = None if root else read_document(open_store(dataset), DATASET_FILE)
    return [document["source_root"]] if document else []


def _located(uri: str) -> str:
    """The same place for a process with another working directory."""
    if uri.startswith("@"):
        return f"@{Path(uri[1:]).expanduser().resolve()}"
    return uri if "://" in uri else str(Path(uri).expanduser().resolve())


def _step_of(output: str) -> int:
    from reinforce.student.checkpoint import CHECKPOINT_FILE, read_progress

    file = Path(output) / CHECKPOINT_FILE
    return read_progress(file).step if file.exists() else 0


def _say(console: Console, text: str) -> None:
    if text:
        console.print(text, end="", markup=False, highlight=False, soft_wrap=True)
