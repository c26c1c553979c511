"""The student as the trainer sees it, and one gradient of its loss, whole or in parts.

A part's gradient needs the embeddings of the whole batch, so the batch is embedded once without a graph, the loss is
taken of all of it, and each part is embedded again for its share of the gradient (GradCache, arXiv 2101.06983): the
memory of one part, one more forward pass, the same gradient.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from reinforce.config import LOSSES_OF_IMAGE_TOWERS, LossConfig
from reinforce.student.batch import Batch
from reinforce.student.losses import StudentOutputs
from reinforce.student.models import Student

Loss = Callable[[StudentOutputs, Batch], dict[str, Tensor]]
"""`loss`, and detached its terms."""


class Learner(nn.Module):
    """A student with what only training needs: the normalisation of pixels and the maps into the teachers' spaces."""

    mean: Tensor
    std: Tensor

    def __init__(self, student: Student, loss: LossConfig, teacher_dims: dict[str, int]) -> None:
        super().__init__()
        self.model = student.model
        self.has_text = student.has_text
        self.max_log_scale = math.log(loss.max_logit_scale)
        dims = teacher_dims if loss.feature_weight else {}
        self.image_maps = nn.ModuleDict({name: nn.Linear(student.embed_dim, dim) for name, dim in dims.items()})
        self.text_maps = nn.ModuleDict(
            {name: nn.Linear(student.embed_dim, dim) for name, dim in dims.items() if student.has_text}
        )
        if loss.kind in LOSSES_OF_IMAGE_TOWERS:
            # It has no part in the loss; several processes would wait for its gradient.
            self.model.logit_scale.requires_grad_(False)
        self.register_buffer("mean", torch.tensor(student.mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(student.std).view(3, 1, 1) * 255, persistent=False)

    def forward(
        self,
        images: UInt8[Tensor, "batch 3 size size"],
        texts: dict[str, Int64[Tensor, "batch context"]],
        modalities: dict[str, UInt8[Tensor, "batch 3 size size"]],
    ) -> StudentOutputs:
        """Unit-norm embeddings of views, those of all modalities in one pass, and of the captions of every role."""
        pixels = torch.cat([images, *modalities.values()]) if modalities else images
        rows = self._unit_norm(self.model.encode_image((pixels - self.mean) / self.std))
        image, *others = torch.split(rows, len(images))
        embedded: dict[str, Tensor] = {}
        if self.has_text:
            of_texts = self._unit_norm(self.model.encode_text(torch.cat(list(texts.values()))))
            embedded = dict(zip(texts, torch.split(of_texts, len(image)), strict=True))
        return StudentOutputs(
            image=image,
            texts=embedded,
            logit_scale=self.model.logit_scale.exp().reshape(()),
            mapped_image={name: linear(image) for name, linear in self.image_maps.items()},
            mapped_texts={
                role: {name: linear(text) for name, linear in self.text_maps.items()} for role, text in embedded.items()
            },
            modalities=dict(zip(modalities, others, strict=True)),
        )

    @torch.no_grad()
    def bound_logit_scale(self) -> None:
        """What follows every step: a bound in the forward pass would hold the scale above it for ever."""
        if self.model.logit_scale.requires_grad:
            self.model.logit_scale.clamp_(max=self.max_log_scale)

    def _unit_norm(self, rows: Tensor) -> Float[Tensor, "batch dim"]:
        return F.normalize(rows.float(), dim=-1)


def backward(
    learner: Learner | DistributedDataParallel,
    loss: Loss,
    batch: Batch,
    *,
    num_parts: int = 1,
    autocast: AbstractContextManager[Any] | None = None,
) -> dict[str, Tensor]:
    """Adds the gradient of the loss of this process's rows to the parameters; returns the loss and its terms.

    Exact for any number of parts unless the student has batch statistics, which are then those of a part.
    """
    autocast = autocast or nullcontext()
    if num_parts == 1:
        with autocast:
            outputs = learner(batch.images, batch.texts, batch.modalities)
        terms = loss(outputs, batch)
        terms["loss"].backward()  # type: ignore[no-untyped-call]
        return terms
    parts = batch.split(num_parts)
    states, embedded = _embed(learner, parts, autocast)
    whole = _join(embedded)
    leaves = [tensor.detach().requires_grad_() for tensor in _tensors(whole)]
    terms = loss(_with_tensors(whole, leaves), batch)
    terms["loss"].backward()  # type: ignore[no-untyped-call]
    for index, (part, state) in enumerate(zip(parts, states, strict=True)):
        is_last = index == num_parts - 1
        synchronised = isinstance(learner, DistributedDataParallel) and not is_last
        with learner.no_sync() if synchronised else nullcontext():  # type: ignore[operator,union-attr]
            set_rng_state(state, batch.images.device)
            with autocast:
                outputs = learner(part.images, part.texts, part.modalities)
            _share_of_gradient(outputs, leaves, slice(index * len(part), (index + 1) * len(part)), num_parts).backward()  # type: ignore[no-untyped-call]
    return terms


def _embed(
    learner: nn.Module, parts: Sequence[Batch], autocast: AbstractContextManager[Any]
) -> tuple[list[list[Tensor]], list[StudentOutputs]]:
    """The outputs of every part without a graph, and the random state each began with."""
    module = learner.module if isinstance(learner, DistributedDataParallel) else learner
    buffers = [buffer.clone() for buffer in module.buffers()]
    states, outputs = [], []
    with torch.no_grad(), autocast:
        for part in parts:
            states.append(rng_state(part.images.device))
            outputs.append(module(part.images, part.texts, part.modalities))
        # Each part passes once more: running statistics must see it once.
        for buffer, before in zip(module.buffers(), buffers, strict=True):
            buffer.copy_(before)
    return states, outputs


def _share_of_gradient(outputs: StudentOutputs, leaves: list[Tensor], rows: slice, num_parts: int) -> Tensor:
    """A scalar whose gradient is that of the loss by what these rows' outputs depend on."""
    total = outputs.image.new_zeros(())
    for tensor, leaf in zip(_tensors(outputs), leaves, strict=True):
        if leaf.grad is not None:
            total = total + (tensor * (leaf.grad[rows] if leaf.ndim else leaf.grad / num_parts)).sum()
    return total


def _tensors(outputs: StudentOutputs) -> list[Tensor]:
    texts = [text for of_role in outputs.mapped_texts.values() for text in of_role.values()]
    images = [outputs.image, *outputs.modalities.values()]
    return [*images, *outputs.texts.values(), outputs.logit_scale, *outputs.mapped_image.values(), *texts]


def _with_tensors(outputs: StudentOutputs, tensors: list[Tensor]) -> StudentOutputs:
    """`outputs` with other tensors in the places `_tensors` lists."""
    given = iter(tensors)
    return replace(
        outputs,
        image=next(given),
        modalities={name: next(given) for name in outputs.modalities},
        texts={role: next(given) for role in outputs.texts},
        logit_scale=next(given),
        mapped_image={name: next(given) for name in outputs.mapped_image},
        mapped_texts={role: {name: next(given) for name in of_role} for role, of_role in outputs.mapped_texts.items()},
    )


def _join(parts: Sequence[StudentOutputs]) -> StudentOutputs:
    rows = [
        torch.cat(tensors) if tensors[0].ndim else tensors[0] for tensors in zip(*map(_tensors, parts), strict=True)
    ]
    return _with_tensors(parts[0], rows)


def rng_state(device: torch.device) -> list[Tensor]:
    """The state of torch's generators, of the CPU and of `device`."""
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])


def set_rng_state(state: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
