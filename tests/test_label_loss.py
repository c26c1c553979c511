"""The loss of a labelling student: numbers by hand, parts and processes exact, and what does not fit is refused."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from reinforce.config import ConfigError, LossConfig, StudentModelConfig
from reinforce.shards.banks import Bank
from reinforce.student.batch import Batch
from reinforce.student.label_loss import LabelLoss
from reinforce.student.learner import Learner, backward
from reinforce.student.losses import StudentOutputs
from reinforce.student.models import build_student
from tests.students import MODEL

DIM = 16


def bank_of(*labels: list[float]) -> Bank:
    embeddings = F.normalize(torch.tensor(labels, dtype=torch.float32), dim=1).numpy()
    names = tuple(map(str, range(len(labels))))
    return Bank("b", "a", names, ("{}",), embeddings, 10.0, None, "0" * 64, "1" * 64)


def batch_of(teacher: torch.Tensor, size: int = 32) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (len(teacher), 3, size, size), dtype=torch.uint8, generator=generator)
    names = [str(row) for row in range(len(teacher))]
    return Batch(names, names, images, {}, {"a": teacher.half()}, {})


def loss_of(bank_of_it: Bank | None, *, dim: int, **fields: Any) -> LabelLoss:
    return LabelLoss(LossConfig(kind="clip4retrofit", **fields), {"a": dim}, dim, bank_of_it)


def outputs_of(image: torch.Tensor) -> StudentOutputs:
    return StudentOutputs(image, {}, torch.tensor(10.0))


def test_by_hand() -> None:
    # Logits at scale 2: the teacher's (2, 0) and (0, 2), the student's (1.2, 1.6) and (0, 2).
    loss = loss_of(bank_of([1, 0], [0, 1]), dim=2, bank="b", bank_weight=3.0, bank_scale=2.0)
    terms = loss(outputs_of(torch.tensor([[0.6, 0.8], [0, 1.0]])), batch_of(torch.tensor([[1.0, 0], [0, 1]])))
    likely = 1 / (1 + math.exp(-2))
    wanted = [likely * math.log(likely), (1 - likely) * math.log(1 - likely)]
    found = [likely * -math.log1p(math.exp(0.4)), (1 - likely) * -math.log1p(math.exp(-0.4))]
    divergence = (sum(wanted) - sum(found)) / 2
    assert terms["cosine"].item() == pytest.approx(0.2)
    assert terms["bank"].item() == pytest.approx(divergence, rel=1e-5)
    assert terms["loss"].item() == pytest.approx(0.2 + 3 * divergence, rel=1e-5)


def test_stored_embeddings_are_brought_to_unit_norm() -> None:
    rows = F.normalize(torch.randn(6, DIM, generator=torch.Generator().manual_seed(1)), dim=1)
    loss = loss_of(bank_of(*np.eye(4, DIM).tolist()), dim=DIM, bank="b")
    terms = loss(outputs_of(rows), batch_of(rows * 0.9))
    assert terms["loss"].item() == pytest.approx(0, abs=1e-3)


def test_without_weight_there_is_no_bank() -> None:
    rows = torch.eye(4, DIM)
    assert loss_of(None, dim=DIM, bank_weight=0)(outputs_of(rows), batch_of(rows)).keys() == {"loss", "cosine"}


def learner_and_loss() -> tuple[Learner, LabelLoss]:
    model = StudentModelConfig.model_validate(MODEL | {"text": None})
    config = LossConfig(kind="clip4retrofit", bank="b", bank_scale=20.0)
    bank = bank_of(*torch.randn(5, DIM, generator=torch.Generator().manual_seed(2)).tolist())
    return Learner(build_student(model, 0), config, {"a": DIM}), LabelLoss(config, {"a": DIM}, DIM, bank)


def gradient_of(batches: list[Batch], *, num_parts: int = 1) -> dict[str, torch.Tensor]:
    """The mean of the batches' gradients, by parameter: that of as many processes."""
    learner, loss = learner_and_loss()
    for batch in batches:
        backward(learner, loss, batch, num_parts=num_parts)
    grads = {name: parameter.grad for name, parameter in learner.named_parameters() if parameter.requires_grad}
    # A parameter without a gradient would stop several processes.
    return {name: grad / len(batches) for name, grad in grads.items() if grad is not None or pytest.fail(name)}


def test_parts_and_processes_have_the_gradient_of_the_whole() -> None:
    batch = batch_of(F.normalize(torch.randn(16, DIM, generator=torch.Generator().manual_seed(3)), dim=1))
    whole = gradient_of([batch])
    for other in (gradient_of([batch], num_parts=4), gradient_of(batch.split(2)), gradient_of(batch.split(4))):
        assert other.keys() == whole.keys()
        for name, gradient in whole.items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-3, atol=2e-6)


def test_autocast_leaves_it_in_fp32() -> None:
    rows = F.normalize(torch.randn(8, DIM, generator=torch.Generator().manual_seed(4)), dim=1)
    loss, batch = learner_and_loss()[1], batch_of(rows.flip(0))
    exact = loss(outputs_of(rows), batch)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(replace(outputs_of(rows), logit_scale=torch.tensor(1.0)), batch)
    assert found["bank"].dtype is torch.float32
    assert found["bank"].item() == exact["bank"].item()


def test_what_does_not_fit_is_refused() -> None:
    config = LossConfig(kind="clip4retrofit", bank_weight=0)
    with pytest.raises(ConfigError, match="needs one teacher, not a, b; name it"):
        LabelLoss(config, {"a": 4, "b": 4}, 4, None)
    with pytest.raises(ConfigError, match="embed_dim: must be 6, that of teacher a"):
        LabelLoss(config, {"a": 6}, 4, None)
