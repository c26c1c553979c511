"""Training on a Ray cluster of several nodes: the curve of torchrun, a node lost on the way, errors in one line."""

import io
import pickle
import threading
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from reinforce import ray_train
from reinforce.ray_train import train_on_ray
from reinforce.storage import StorageError, aws
from reinforce.student.checkpoint import CHECKPOINT_FILE, read_progress
from reinforce.student.models import load_student
from reinforce.student.run import TrainingError
from reinforce.student.train import TrainingSummary
from tests.clusters import RayNodes
from tests.students import TORCHRUN, build_dataset, plan_of, read, recipe
from tests.test_student_train import losses


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_dataset(tmp_path_factory.mktemp("training"))


def train(dataset: Path, output: Path, *, said: io.StringIO | None = None, **student: Any) -> TrainingSummary:
    console = Console(file=said or io.StringIO())
    return train_on_ray(str(dataset), output, recipe(**student), address="auto", num_workers=2, console=console)


def test_losses_without_progress_end_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after a checkpoint is the first again; what a process raised for the user is never tried again."""
    steps, resumed = iter([0, 10, 10, 10, 10, 10]), []

    def lose(settings: dict[str, Any], *_: Any) -> None:
        resumed.append(settings["resume"])
        raise ray_train._LostError("a process died")

    monkeypatch.setattr(ray_train, "_run", lose)
    monkeypatch.setattr(ray_train, "_step_of", lambda _: next(steps))
    said = io.StringIO()
    arguments: Any = ({"output": str(tmp_path)}, None, None, 2)
    with pytest.raises(TrainingError, match="a process died, 4 times with no checkpoint in between"):
        ray_train._restarted(*arguments, resume=False, console=Console(file=said))
    assert resumed == [False, True, True, True]
    assert said.getvalue().count("all start again from step 10") == 3


def test_what_ended_a_training() -> None:
    from ray.exceptions import ActorDiedError
    from ray.train import WorkerGroupError

    def meaning(**failures: Exception) -> Exception:
        return ray_train._meaning(WorkerGroupError("", dict(enumerate(failures.values()))))

    broken = RuntimeError("Connection closed by peer [127.0.0.1]:4711")
    assert isinstance(meaning(a=broken, b=ActorDiedError()), ray_train._LostError)
    assert isinstance(meaning(a=broken), ray_train._LostError)
    assert isinstance(meaning(a=broken, b=TrainingError("the loss is nan")), TrainingError)
    assert isinstance(meaning(a=StorageError("no space left")), StorageError)
    defect = IndexError("list index out of range")
    assert meaning(a=defect) is defect


def test_readers_are_told_how_stores_are_reached(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are processes of their own, where nothing is known of it."""
    keys = aws.AwsKeys("id", "secret", None)
    access = {aws.store_key("bucket", {}): aws.AwsAccess("eu-west-3", "https://x", False, False, None, keys)}
    monkeypatch.setattr(aws, "accepted", dict(access))
    stream = read(plan_of(dataset))
    monkeypatch.setattr(aws, "accepted", {})
    monkeypatch.setattr("reinforce.student.reader.get_worker_info", lambda: SimpleNamespace(id=0, num_workers=1))
    with closing(iter(pickle.loads(pickle.dumps(stream)))) as batches:
        next(batches)
    assert aws.accepted == access


def test_two_processes_and_a_lost_node_give_the_curve_of_torchrun(
    cluster: RayNodes, of_torchrun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_a_node() -> None:
        from ray._private.state import available_resources_per_node

        while not (tmp_path / "ray" / CHECKPOINT_FILE).exists():
            time.sleep(0.05)
        has_room = {node for node, free in available_resources_per_node().items() if free.get("CPU")}
        cluster.remove(next(index for index, node in enumerate(cluster.nodes) if node.node_id not in has_room))

    cluster.add(1)
    thread = threading.Thread(target=lose_a_node)
    thread.start()
    said = io.StringIO()
    monkeypatch.chdir(tmp_path)  # the processes have a working directory of their own
    summary = train(of_torchrun / "reinforced", Path("ray"), said=said, **TORCHRUN)
    thread.join()
    assert "all start again from step" in said.getvalue()
    assert 10 <= summary.num_steps_before < TORCHRUN["steps"]
    assert summary.student == tmp_path / "ray/student"
    assert losses(tmp_path / "ray") == pytest.approx(losses(of_torchrun / "run"), rel=1e-5)
    assert len(read_progress(tmp_path / "ray" / CHECKPOINT_FILE).positions) == 2
    load_student(tmp_path / "ray/student")
