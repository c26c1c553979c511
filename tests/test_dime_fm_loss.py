"""DIME-FM's loss: numbers worked out by hand, plain autograd in float64 as the reference, and two real processes."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor

from reinforce.config import ConfigError, LossConfig
from reinforce.student.batch import Batch
from reinforce.student.dime_fm_loss import DimeFmLoss
from reinforce.student.losses import StudentOutputs

DIMS = {"a": 6, "b": 9}
EVERYTHING = LossConfig(kind="dime_fm", udist_weight=0.2, cosine_weight=0.5, similarity_scale=30.0)


def unit_rows(num_rows: int, dim: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(num_rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def batch_of(images: dict[str, Tensor], sentences: dict[str, Tensor]) -> Batch:
    num_rows = len(next(iter(images.values())))
    return Batch(
        keys=[str(row) for row in range(num_rows)],
        stems=["a"] * num_rows,
        images=torch.zeros(num_rows, 3, 1, 1, dtype=torch.uint8),
        texts={},
        teacher_images=images,
        teacher_texts={},
        sentences=sentences,
    )


def make_batch(num_rows: int = 300, num_sentences: int = 70, dims: dict[str, int] = DIMS) -> Batch:
    """More images than are compared at a time, another number of sentences; not quite of unit norm, as stored."""
    return batch_of(
        {name: unit_rows(num_rows, dim, dim).half() for name, dim in dims.items()},
        {name: unit_rows(num_sentences, dim, 50 + dim).half() for name, dim in dims.items()},
    )


def outputs(image: Tensor) -> StudentOutputs:
    return StudentOutputs(image, {}, torch.tensor(1.0))


def plain(config: LossConfig, batch: Batch, image: Tensor, dims: dict[str, int] = DIMS) -> dict[str, Tensor]:
    """The loss as the paper's trainer has it, in float64, every matrix whole."""

    def divergence(temperature: float, target: Tensor, logits: Tensor) -> Tensor:
        target, logits = (config.similarity_scale * matrix / temperature for matrix in (target, logits))
        return F.kl_div(logits.log_softmax(1), target.softmax(1), reduction="batchmean")

    heads = dict(zip(dims, torch.split(image.double(), list(dims.values()), dim=1), strict=True))
    terms = dict.fromkeys(("vl", "pvl", "udist", "cosine"), torch.zeros((), dtype=torch.float64))
    for name, head in heads.items():
        s, u, v = (F.normalize(rows.double()) for rows in (head, batch.teacher_images[name], batch.sentences[name]))
        temperature = config.vl_temperature
        vl = divergence(temperature, u @ v.T, s @ v.T) + divergence(temperature, v @ u.T, v @ s.T)
        found = {
            "vl": vl,
            "pvl": 2 * divergence(config.pvl_temperature, u @ u.T, s @ u.T),
            "udist": 2 * divergence(config.udist_temperature, u @ u.T, s @ s.T),
            "cosine": (1 - (s * u).sum(1)).mean(),
        }
        terms = {term: total + found[term] / len(heads) for term, total in terms.items()}
    weights = {term: getattr(config, f"{term}_weight") for term in terms}
    return terms | {"loss": sum((weights[term] * value for term, value in terms.items()), torch.zeros(()))}


def test_by_hand() -> None:
    one, other = [1.0, 0.0], [0.0, 1.0]
    teacher = {"a": torch.tensor([one, other])}
    config = LossConfig(
        kind="dime_fm",
        similarity_scale=math.log(27),
        vl_temperature=3.0,
        pvl_temperature=1.5,
        udist_temperature=3.0,
        udist_weight=0.1,
        cosine_weight=2.0,
    )
    loss = DimeFmLoss(config, {"a": 2}, 2)
    # The student takes each image for the other one. At T 3 the odds of the own sentence are 3 to 1, at T 1.5 9 to 1.
    swapped = loss(outputs(torch.tensor([other, one])), batch_of(teacher, teacher))
    expected = {"vl": math.log(3), "pvl": 2 * 0.8 * math.log(9), "udist": 0.0, "cosine": 1.0}
    expected["loss"] = 0.7 * expected["vl"] + 0.3 * expected["pvl"] + 2.0
    assert {name: term.item() for name, term in swapped.items()} == pytest.approx(expected, abs=1e-6)
    # It takes all images for the first one.
    alike = loss(outputs(torch.tensor([one, one])), batch_of(teacher, teacher))
    assert alike["udist"].item() == pytest.approx(2 * (0.75 * math.log(1.5) - 0.25 * math.log(2)), abs=1e-6)


@pytest.mark.parametrize("dims", [{"a": 6}, DIMS], ids=["one teacher", "two"])
def test_value_and_gradient_are_those_of_plain_autograd(dims: dict[str, int]) -> None:
    batch, width = make_batch(dims=dims), sum(dims.values())
    raw = torch.randn(300, width, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    ours, reference = raw.float().requires_grad_(), raw.clone().requires_grad_()
    found = DimeFmLoss(EVERYTHING, dims, width)(outputs(F.normalize(ours)), batch)
    expected = plain(EVERYTHING, batch, F.normalize(reference), dims)
    found["loss"].backward()  # type: ignore[no-untyped-call]
    expected["loss"].backward()  # type: ignore[no-untyped-call]
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {name: value.item() for name, value in expected.items()}, rel=1e-4
    )
    assert {name for name, value in found.items() if value.requires_grad} == {"loss"}
    assert ours.grad is not None
    assert reference.grad is not None
    torch.testing.assert_close(ours.grad.double(), reference.grad, rtol=1e-3, atol=1e-3 * float(reference.grad.std()))


def test_a_student_that_agrees_with_its_teachers_has_no_loss() -> None:
    batch = make_batch(dims=DIMS)
    # Each head in the place of its name, whatever its norm there.
    image = torch.cat([F.normalize(batch.teacher_images["a"].float()), 3 * batch.teacher_images["b"].float()], 1)
    terms = DimeFmLoss(EVERYTHING, DIMS, 15)(outputs(F.normalize(image)), batch)
    assert all(abs(value.item()) < 1e-5 for value in terms.values())


def test_a_weight_of_zero_computes_nothing() -> None:
    batch = replace(make_batch(), sentences={})
    terms = DimeFmLoss(LossConfig(kind="dime_fm", vl_weight=0.0), DIMS, 15)(outputs(unit_rows(300, 15, 1)), batch)
    assert terms.keys() == {"loss", "pvl"}


def test_the_embedding_is_as_wide_as_all_heads() -> None:
    with pytest.raises(ConfigError, match=r"embed_dim: must be 15 for loss.kind dime_fm: 6 of a \+ 9 of b"):
        DimeFmLoss(EVERYTHING, DIMS, 9)
    with pytest.raises(ConfigError, match=r"embed_dim: must be 6 for loss.kind dime_fm: 6 of a"):
        DimeFmLoss(EVERYTHING, {"a": 6}, 9)


def share(batch: Batch, rank: int) -> Batch:
    """What a process has of a batch: half of its images and half of its sentences."""
    images = {name: rows.chunk(2)[rank] for name, rows in batch.teacher_images.items()}
    return batch_of(images, {name: rows.chunk(2)[rank] for name, rows in batch.sentences.items()})


def gradient(config: LossConfig, batch: Batch, images: Tensor) -> dict[str, Tensor]:
    weight = unit_rows(8, 15, 3).requires_grad_()
    terms: dict[str, Any] = DimeFmLoss(config, DIMS, 15)(outputs(F.normalize(images @ weight)), batch)
    terms["loss"].backward()
    assert weight.grad is not None
    return {name: value.detach() for name, value in terms.items()} | {"weight": weight.grad}


def _one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for name, config in (("global", EVERYTHING), ("own", EVERYTHING.model_copy(update={"gather": False}))):
        found = gradient(config, share(make_batch(), rank), unit_rows(300, 8, 4).chunk(2)[rank])
        for value in found.values():
            dist.all_reduce(value)
        if rank == 0:
            torch.save({term: value / 2 for term, value in found.items()}, f"{folder}/{name}.pt")
    dist.destroy_process_group()


def test_two_processes_compare_with_the_whole_batch_or_with_their_own(tmp_path: Path) -> None:
    mp.spawn(_one_of_two, (str(tmp_path),), nprocs=2)  # type: ignore[attr-defined, no-untyped-call]
    images = unit_rows(300, 8, 4)
    expected = {"global": gradient(EVERYTHING, make_batch(), images)}
    halves = [gradient(EVERYTHING, share(make_batch(), rank), images.chunk(2)[rank]) for rank in range(2)]
    expected["own"] = {name: (value + halves[1][name]) / 2 for name, value in halves[0].items()}
    for name, of_one in expected.items():
        mean = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        torch.testing.assert_close(mean, of_one, rtol=1e-4, atol=1e-5)
