"""EdgeVL's second stage: the loss by hand, and what a batch of triplets holds. Runs: `test_triplet_runs.py`."""

import shutil
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from reinforce.config import ConfigError, LossConfig, StudentModelConfig
from reinforce.pseudo_labels import pseudo_labels
from reinforce.shards.banks import read_bank
from reinforce.shards.dataset import open_dataset
from reinforce.storage import open_store
from reinforce.student.batch import Batch, Position
from reinforce.student.distributed import Processes
from reinforce.student.groups import ReadError
from reinforce.student.learner import Learner, backward
from reinforce.student.losses import StudentOutputs
from reinforce.student.models import Student, build_student
from reinforce.student.plan import plan_reading
from reinforce.student.triplet_reader import TripletReader
from reinforce.student.triplets import TripletLoss
from tests.s3_server import S3Server, use_test_credentials
from tests.students import plan_of, read, recipe
from tests.tars import image_bytes, write_tar
from tests.triplets import MODEL, NUM_NEGATIVES, SIZES, build_pairs, random_batch, settings

# The loss.


def test_the_loss_by_hand() -> None:
    def unit(degrees: float) -> list[float]:
        return [np.cos(np.radians(degrees)), np.sin(np.radians(degrees))]

    def distance(degrees: float) -> float:
        return float(2 * np.sin(np.radians(degrees) / 2))

    # Two anchors, their positives, the first negative of each, the second of each.
    rgb = torch.tensor([unit(angle) for angle in (0, 90, 20, 90, 30, 100, -25, 180)])
    thermal = torch.tensor([unit(angle) for angle in (0, 90, 0, 90, 180, 270, 180, 270)])
    loss = TripletLoss(
        LossConfig(kind="triplet", bank="b", margin=0.2, num_negatives=2), {"a": 2}, 2, ("rgb", "thermal")
    )
    rows = rgb.requires_grad_()
    outputs = StudentOutputs(image=rows, texts={}, logit_scale=torch.tensor(1.0), modalities={"thermal": thermal})
    terms = loss(outputs, random_batch(8))
    by_hand = [distance(20) - distance(30) + 0.2, distance(20) - distance(25) + 0.2, 0.2 - distance(10), 0.0]
    assert terms["rgb"].item() == pytest.approx(np.mean(by_hand), rel=1e-5)
    assert terms["thermal"].item() == 0
    assert terms["loss"].item() == pytest.approx(terms["rgb"].item())
    terms["loss"].backward()  # type: ignore[no-untyped-call]
    # An anchor that is its positive has no direction to go.
    assert rows.grad is not None
    assert bool(torch.isfinite(rows.grad).all())


def test_parts_give_the_gradient_of_the_whole_batch() -> None:
    config = LossConfig(kind="triplet", bank="b", num_negatives=NUM_NEGATIVES)
    model = StudentModelConfig.model_validate(MODEL | {"backbone": "test_vit", "image_size": 32})
    gradients = []
    for num_parts in (1, 4):
        learner = Learner(build_student(model, seed=0), config, {})
        backward(learner, TripletLoss(config, {"a": 12}, 12, ("rgb",)), random_batch(8), num_parts=num_parts)
        gradients.append([p.grad for p in learner.parameters() if p.grad is not None])
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-3, atol=1e-6)


# The batches.


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_pairs(tmp_path_factory.mktemp("triplets"))


def batches(
    dataset: Path | str,
    *,
    student: Student | None = None,
    world_size: int = 1,
    root: str | None = None,
    select: str | None = None,
    **fields: Any,
) -> Iterator[Batch]:
    config = recipe(**settings(**fields)).student
    assert config is not None
    plan = plan_reading(str(dataset), config.data, reads_captions=False, root=root, select=select)
    student = student or build_student(config.model, config.seed)
    bank = read_bank(open_store(str(dataset)).uri_of("banks/things"), "large")
    processes = Processes(0, world_size, torch.device("cpu"))
    return TripletReader(plan, config, student, bank, processes).batches(Position())


def epochs_of(stream: Iterator[Batch], num_epochs: int) -> list[list[Batch]]:
    found: list[list[Batch]] = [[] for _ in range(num_epochs)]
    for batch in stream:
        if batch.position.group >= num_epochs:
            break
        found[batch.position.group].append(batch)
    stream.close()  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("modalities", [["rgb"], ["thermal", "rgb"]])
def test_an_epoch_is_every_anchor_once_in_the_view_that_stage_one_sees(dataset: Path, modalities: list[str]) -> None:
    epochs = epochs_of(batches(dataset, data={"workers": 0, "modalities": modalities}), 2)
    labels = labels_of(dataset)
    plan = plan_of(dataset, reads_captions=False, modalities=modalities)
    for epoch, of_stage_one in zip(epochs, read(plan, batch_size=33, epochs=2), strict=True):
        seen = dict(zip(of_stage_one.keys, views_of(of_stage_one), strict=True))
        anchors = [key for batch in epoch for key in batch.keys[:5]]
        num_anchors = 33 - epoch[0].counts["no_semi_hard_negative"] - epoch[0].counts["no_positive"]
        # The last batch is filled up with the first anchors.
        assert 10 < num_anchors == len(set(anchors)) <= len(anchors) == -(-num_anchors // 5) * 5
        for batch in epoch:
            anchors, positives, *negatives = [batch.keys[start : start + 5] for start in range(0, len(batch), 5)]
            assert len(negatives) == NUM_NEGATIVES
            for place, anchor in enumerate(anchors):
                assert positives[place] != anchor
                assert labels[positives[place]] == labels[anchor]
                assert all(labels[of_anchors[place]] != labels[anchor] for of_anchors in negatives)
            assert list(batch.modalities) == modalities[1:]
            assert all(torch.equal(views, seen[key]) for key, views in zip(batch.keys, views_of(batch), strict=True))
    assert [batch.keys for batch in epochs[0]] != [batch.keys for batch in epochs[1]]


def labels_of(dataset: Path) -> dict[str, int]:
    """By key, of the bank's labels the one that the stored clean view is nearest to."""
    opened, bank = open_dataset(str(dataset)), read_bank(str(dataset / "banks/things"), "large")
    found: dict[str, int] = {}
    for stem in SIZES:
        rows = opened.numpy("embeddings/large/image", stem, "view_000").astype(np.float32)
        keys = opened.spine(stem).column("key").to_pylist()
        found |= dict(zip(keys, (rows @ bank.embeddings.T).argmax(axis=1).tolist(), strict=True))
    return found


def views_of(batch: Batch) -> torch.Tensor:
    """All modalities of a row, in order."""
    return torch.stack([batch.images, *batch.modalities.values()], dim=1)


def test_worker_processes_change_nothing(dataset: Path) -> None:
    own, theirs = (list(islice(batches(dataset, data={"workers": n}), 9)) for n in (0, 1))
    for mine_, theirs_ in zip(own, theirs, strict=True):
        assert mine_.keys == theirs_.keys
        assert torch.equal(mine_.images, theirs_.images)
        assert mine_.position == theirs_.position


def test_a_bucket_gives_the_same_batches(dataset: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    use_test_credentials(monkeypatch)
    server.make_bucket("triplets")
    client = server.client()
    for path in dataset.parent.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), "triplets", str(path.relative_to(dataset.parent)))
    uri, root = (f"s3://triplets/{folder}?endpoint_url={server.endpoint}" for folder in ("data", "in"))
    stream = batches(uri, root=root, data={"workers": 1})
    own, theirs = list(islice(batches(dataset), 6)), list(islice(stream, 6))
    assert len(own) == 6
    for near, far in zip(own, theirs, strict=True):
        assert near.keys == far.keys
        assert torch.equal(near.images, far.images)
    stream.close()  # type: ignore[attr-defined]


def test_mining_is_of_the_student_as_it_is_in_evaluation_and_leaves_it_training(dataset: Path) -> None:
    student = build_student(StudentModelConfig.model_validate(MODEL), seed=0)
    before = {name: buffer.clone() for name, buffer in student.model.named_buffers()}
    random_state = torch.get_rng_state()
    stream = batches(dataset, student=student)
    first = list(islice(stream, 3))
    # However often data is read again, the steps have the random numbers they would have had.
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(module.training for module in student.model.modules())
    assert all(torch.equal(buffer, before[name]) for name, buffer in student.model.named_buffers())
    # The next epoch's triplets are those of another student by now.
    with torch.no_grad():
        for parameter in student.model.visual.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    later = [batch for batch in islice(stream, 12) if batch.position.group == 1]
    pairs = [
        {key: positive for batch in epoch for key, positive in zip(batch.keys[:5], batch.keys[5:10], strict=True)}
        for epoch in (first, later)
    ]
    assert pairs[0] != pairs[1]
    stream.close()  # type: ignore[attr-defined]


def write_selection(file: Path, numbers: Iterable[int]) -> str:
    """Selects images of shard a by their numbers."""
    keys = [str(number) for number in numbers]
    pq.write_table(pa.table({"stem": ["a"] * len(keys), "key": keys}), file)
    return str(file)


def test_where_no_margin_helps_the_reason_is_told(dataset: Path, tmp_path: Path) -> None:
    bank = read_bank(open_store(str(dataset)).uri_of("banks/things"), "large")
    labels, _ = pseudo_labels(open_dataset(str(dataset)).numpy("embeddings/large/image", "a", "view_000"), bank)
    of_one = np.flatnonzero(labels == labels[0])
    assert 2 < len(of_one) < SIZES["a"]
    other = np.flatnonzero(labels != labels[0])[0]
    reasons = {
        f"all have the label {bank.labels[labels[0]]} .*; select samples of at least two labels": of_one.tolist(),
        r"no label has two of them \(no_positive 2\); select more": [0, other],
    }
    for reason, numbers in reasons.items():
        select = write_selection(tmp_path / "select.parquet", numbers)
        with pytest.raises(ReadError, match=rf"mining left no triplet of {len(numbers)} samples: {reason}$"):
            next(batches(dataset, select=select, loss={"kind": "triplet", "bank": "things", "margin": 2.0}))


def test_only_selected_samples_are_in_triplets_and_damaged_ones_are_counted(dataset: Path, tmp_path: Path) -> None:
    write_selection(tmp_path / "select.parquet", range(12))
    copy = shutil.copytree(dataset.parent, tmp_path / "copy") / "data"
    members = [(f"{n}.png", image_bytes(n + (n == 3), 30, 30)) for n in range(17)]
    write_tar(copy.parent / "in" / "a.tar", members)
    places: dict[str, Any] = {"select": str(tmp_path / "select.parquet"), "root": str(copy.parent / "in")}
    with pytest.raises(ReadError, match=r"shard a: .*sample 3: its image is not the one.*student.data.damaged=skip"):
        next(batches(copy, **places))
    (epoch,) = epochs_of(batches(copy, data={"workers": 0, "damaged": "skip"}, **places), 1)
    keys = {key for batch in epoch for key in batch.keys}
    assert len(keys) > 5
    assert keys <= {str(n) for n in range(12)} - {"3"}
    assert epoch[0].counts["image_mismatch"] == 1
    assert epoch[0].counts["not_selected"] == 5
    assert not any(batch.counts for batch in epoch[1:])


def test_what_does_not_go_with_triplets_is_refused(dataset: Path) -> None:
    with pytest.raises(ConfigError, match="triplet trains in one process; start it without torchrun"):
        batches(dataset, world_size=2)
    with pytest.raises(ValueError, match="decodes an image for every view; leave it at 1"):
        batches(dataset, data={"views_per_decode": 2})
    with pytest.raises(ReadError, match=r"mining left no triplet of 33 samples: .*; raise student.loss.margin"):
        next(batches(dataset, loss={"kind": "triplet", "bank": "things", "margin": 1e-9}))
