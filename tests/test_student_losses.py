"""The losses of a student: numbers worked out by hand, plain autograd as the reference, and two real processes."""

import math
from collections.abc import Callable
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
from reinforce.student.batch import ORIGINAL, SYNTHETIC, Batch
from reinforce.student.compare import Gathered, gather
from reinforce.student.losses import (
    StudentLoss,
    StudentOutputs,
    TeacherPair,
    affinity_loss,
    caption_ids,
    contrastive_loss,
    feature_loss,
)

TEACHER_DIMS = {"a": 6, "b": 9}
TEACHER_SCALES = {"a": 100.0, "b": 30.0}
SCALE = torch.tensor(20.0)
ROLES = (ORIGINAL, SYNTHETIC)


def rows(*values: list[float]) -> Gathered:
    return gather(torch.tensor(values))


def unit_rows(num_rows: int, dim: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(num_rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_contrastive_by_hand() -> None:
    image, text = rows([1, 0], [0, 1]), rows([1, 0], [0.6, 0.8])
    # At scale 2 the rows of image to text are (2, 1.2) and (0, 1.6), of text to image (2, 0) and (1.2, 1.6).
    expected = sum(math.log1p(math.exp(-gap)) for gap in (0.8, 1.6, 2.0, 0.4)) / 4
    assert contrastive_loss(image, text, torch.tensor(2.0)).item() == pytest.approx(expected, abs=1e-6)


def test_masked_contrastive_by_hand() -> None:
    image, text = rows([1, 0, 0], [0, 1, 0], [0, 0, 1]), rows([1, 0, 0], [1, 0, 0], [0, 0, 1])
    ids = gather(torch.tensor([7, 7, 9]))
    # Both ways: (1, -, 0), (-, 0, 0), (0, 0, 1), the own pair on the diagonal.
    expected = (math.log1p(math.exp(-1)) + math.log(2) + math.log(2 + math.e) - 1) / 3
    scale = torch.tensor(1.0)
    assert contrastive_loss(image, text, scale, caption_ids=ids).item() == pytest.approx(expected, abs=1e-6)
    assert contrastive_loss(image, text, scale, image_ids=ids).item() == pytest.approx(expected, abs=1e-6)
    one, other = gather(torch.tensor([7, 7, 9])), gather(torch.tensor([1, 5, 5]))
    # (1, -, 0), (-, 0, -), (0, -, 1): either id is enough.
    expected = 2 * math.log1p(math.exp(-1)) / 3
    both = contrastive_loss(image, text, scale, caption_ids=one, image_ids=other)
    assert both.item() == pytest.approx(expected, abs=1e-6)


def test_rows_of_one_image_are_no_negatives_of_one_another() -> None:
    batch = make_batch(8)
    outputs = embed(make_weights(), batch)
    numbers = torch.tensor([3, 3, 4, 4, 5, 5, 6, 6])
    for config in (LossConfig(kind="clip"), LossConfig(distillation=0.7)):
        loss = StudentLoss(config, TEACHER_SCALES)
        plain, masked = loss(outputs, batch), loss(outputs, replace(batch, images_of=numbers))
        expected = sum(
            contrastive_loss(
                gather(outputs.image), gather(outputs.texts[role]), outputs.logit_scale, image_ids=gather(numbers)
            ).item()
            for role in ROLES
        )
        assert masked["contrastive"].item() == pytest.approx(expected)
        assert masked["contrastive"] < plain["contrastive"]
        assert masked.get("distillation") == plain.get("distillation")


def test_affinity_by_hand() -> None:
    student, uniform = rows([1, 0], [0, 1]), torch.tensor(0.0)
    # softmax(log 3, 0) = (3/4, 1/4), softmax(log 9, 0) = (9/10, 1/10); stored rows may be too long.
    by_three = TeacherPair(rows([2, 0], [0, 2]).normalized(), rows([2, 0], [0, 2]).normalized(), math.log(3))
    three_values = rows([0, 2, 0], [0, 0, 2]).normalized()
    by_nine = TeacherPair(three_values, three_values, math.log(9))
    kl_three, kl_nine = 0.75 * math.log(1.5) + 0.25 * math.log(0.5), 0.9 * math.log(1.8) + 0.1 * math.log(0.2)
    one = affinity_loss(student, student, uniform, [by_three])
    two = affinity_loss(student, student, uniform, [by_three, by_nine])
    assert one.item() == pytest.approx(kl_three, abs=1e-6)
    assert two.item() == pytest.approx((kl_three + kl_nine) / 2, abs=1e-6)
    # Each image is closer to the first text, and no text to either image.
    one_way = TeacherPair(rows([1, 0], [1, 0]), rows([1, 0], [0, 1]), math.log(3))
    assert affinity_loss(student, student, uniform, [one_way]).item() == pytest.approx(kl_three / 2, abs=1e-6)


def test_feature_loss_by_hand() -> None:
    mapped, target = torch.tensor([[3.0, 4.0], [0.0, 5.0]]), torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    assert feature_loss(mapped, target).item() == pytest.approx((0.4**2 + 0.8**2) / 4, abs=1e-6)


def plain_contrastive(image: Tensor, text: Tensor, scale: Tensor, ids: Tensor | None) -> Tensor:
    logits = scale * image @ text.T
    if ids is not None:
        same = (ids[:, None] == ids) & ~torch.eye(len(ids), dtype=torch.bool)
        logits = logits.masked_fill(same, -math.inf)
    target = torch.arange(len(image))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def plain_affinity(image: Tensor, text: Tensor, scale: Tensor, teachers: list[TeacherPair]) -> Tensor:
    losses = []
    for pair in teachers:
        u, v = (F.normalize(side.all.double(), dim=1) for side in (pair.image, pair.text))
        for s, t, x, y in ((image, text, u, v), (text, image, v, u)):
            target = (pair.logit_scale * x @ y.T).softmax(1)
            losses.append(F.kl_div((scale * s @ t.T).log_softmax(1), target, reduction="batchmean"))
    return torch.stack(losses).mean()


def slices(whole: Tensor, num_parts: int) -> list[Gathered]:
    """What each of `num_parts` processes would hold."""
    size = len(whole) // num_parts
    return [Gathered(whole[i * size : (i + 1) * size], whole, i * size) for i in range(num_parts)]


@pytest.mark.parametrize("kind", ["contrastive", "masked", "affinity"])
@pytest.mark.parametrize(("num_rows", "num_parts", "block_rows"), [(7, 1, 1), (7, 1, 3), (7, 1, 100), (9, 3, 2)])
def test_value_and_gradients_are_those_of_plain_autograd(
    kind: str, num_rows: int, num_parts: int, block_rows: int
) -> None:
    image, text = unit_rows(num_rows, 5, 0), unit_rows(num_rows, 5, 1)
    ids = torch.tensor([3, 1, 3, 2, 1, 3, 4, 2, 3])[:num_rows] if kind == "masked" else None
    stored = [(unit_rows(num_rows, dim, dim).half(), unit_rows(num_rows, dim, dim + 1).half()) for dim in (6, 9)]
    teachers = [TeacherPair(gather(u), gather(v), scale) for (u, v), scale in zip(stored, (100.0, 30.0), strict=True)]

    def ours(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        losses = []
        for i, (s, t) in enumerate(zip(slices(image, num_parts), slices(text, num_parts), strict=True)):
            if kind == "affinity":
                sides = [
                    (slices(u, num_parts)[i].normalized(), slices(v, num_parts)[i].normalized()) for u, v in stored
                ]
                part = [TeacherPair(u, v, of.logit_scale) for (u, v), of in zip(sides, teachers, strict=True)]
                losses.append(affinity_loss(s, t, scale, part, block_rows=block_rows))
            else:
                own_ids = slices(ids, num_parts)[i] if ids is not None else None
                losses.append(contrastive_loss(s, t, scale, caption_ids=own_ids, block_rows=block_rows))
        return torch.stack(losses).mean()

    def plain(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        if kind == "affinity":
            return plain_affinity(image, text, scale, teachers)
        return plain_contrastive(image, text, scale, ids)

    leaves = [tensor.clone().requires_grad_() for tensor in (image, text, SCALE)]
    exact = [tensor.double().requires_grad_() for tensor in (image, text, SCALE)]
    # A column-major image: the layout is nobody's promise.
    loss = ours(leaves[0].T.contiguous().T, *leaves[1:])
    reference = plain(*exact)
    assert loss.item() == pytest.approx(reference.item(), rel=1e-5)
    # Another factor than 1 shows that what is above the loss counts.
    (3 * loss).backward()  # type: ignore[no-untyped-call]
    (3 * reference).backward()  # type: ignore[no-untyped-call]
    for leaf, true in zip(leaves, exact, strict=True):
        torch.testing.assert_close(leaf.grad, true.grad, check_dtype=False, rtol=1e-4, atol=2e-5)


def test_a_student_that_agrees_with_its_teacher_has_no_loss() -> None:
    image, text = unit_rows(40, 8, 0).requires_grad_(), unit_rows(40, 8, 1).requires_grad_()
    teacher = TeacherPair(gather(image.detach()), gather(text.detach()), 100.0)
    loss = affinity_loss(gather(image), gather(text), torch.tensor(100.0), [teacher])
    loss.backward()  # type: ignore[no-untyped-call]
    assert abs(loss.item()) < 1e-6
    assert image.grad is not None
    assert image.grad.abs().max() < 1e-5


def test_one_caption_for_all_leaves_nothing_to_learn_and_no_nan() -> None:
    image, text = unit_rows(5, 4, 0).requires_grad_(), unit_rows(5, 4, 1).requires_grad_()
    scale = torch.tensor(100.0, requires_grad=True)
    loss = contrastive_loss(gather(image), gather(text), scale, caption_ids=gather(torch.full((5,), 8)))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert all(leaf.grad is not None and leaf.grad.abs().max() == 0 for leaf in (image, text, scale))


def largest_saved(function: Callable[[], Tensor]) -> int:
    """Values in the largest tensor that autograd keeps for backward."""
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return max(sizes)


def test_nothing_of_size_rows_x_columns_is_kept() -> None:
    image, text = unit_rows(64, 4, 0).requires_grad_(), unit_rows(64, 4, 1).requires_grad_()
    teacher = TeacherPair(gather(unit_rows(64, 6, 2)), gather(unit_rows(64, 6, 3)), 100.0)
    assert largest_saved(lambda: plain_contrastive(image, text, SCALE, None)) >= 64 * 64
    assert largest_saved(lambda: contrastive_loss(gather(image), gather(text), SCALE)) <= 64 * 4
    assert largest_saved(lambda: affinity_loss(gather(image), gather(text), SCALE, [teacher])) <= 64 * 4


def make_batch(num_rows: int = 64) -> Batch:
    """Random embeddings; few different captions, the same ones all over the batch."""

    def stored(seed: int) -> dict[str, Tensor]:
        return {name: unit_rows(num_rows, dim, seed + dim).half() for name, dim in TEACHER_DIMS.items()}

    tokens = torch.tensor([[1, 2, 3], [3, 2, 1], [1, 2, 4], [0, 0, 0], [9, 9, 9], [5, 7, 5], [6, 7, 8]])
    return Batch(
        keys=[str(i) for i in range(num_rows)],
        stems=["s"] * num_rows,
        images=torch.randint(0, 256, (num_rows, 3, 2, 2), dtype=torch.uint8, generator=torch.manual_seed(0)),
        texts={role: tokens[(torch.arange(num_rows) * (i + 3)) % 7] for i, role in enumerate(ROLES)},
        teacher_images=stored(100),
        teacher_texts={role: stored(200 + 100 * i) for i, role in enumerate(ROLES)},
    )


Weights = dict[str, Tensor]


def make_weights() -> Weights:
    """A linear student of 5 dims and its maps."""
    shapes = {"image": (12, 5), "text": (3, 5)}
    shapes |= {f"{side}_{name}": (5, dim) for side in ("image", "text") for name, dim in TEACHER_DIMS.items()}
    weights = {name: unit_rows(*shape, seed) for seed, (name, shape) in enumerate(shapes.items())}
    return {name: weight.requires_grad_() for name, weight in (weights | {"scale": torch.tensor(2.5)}).items()}


def embed(weights: Weights, batch: Batch) -> StudentOutputs:
    image = F.normalize(batch.images.flatten(1).float() @ weights["image"], dim=1)
    texts = {
        role: F.normalize((tokens.float() + 1) @ weights["text"], dim=1).roll(i, 1)
        for i, (role, tokens) in enumerate(batch.texts.items())
    }
    return StudentOutputs(
        image=image,
        texts=texts,
        logit_scale=weights["scale"].exp(),
        mapped_image={name: image @ weights[f"image_{name}"] for name in TEACHER_DIMS},
        mapped_texts={
            role: {name: text @ weights[f"text_{name}"] for name in TEACHER_DIMS} for role, text in texts.items()
        },
    )


EVERYTHING = LossConfig(distillation=0.7, feature_weight=20, mask_same_captions=True, teacher_scales={"b": 50})


def test_student_loss_is_the_weighted_sum_over_roles() -> None:
    batch = make_batch()
    outputs = embed(make_weights(), batch)
    terms = StudentLoss(EVERYTHING, TEACHER_SCALES)(outputs, batch)
    contrastive, distillation, feature = torch.zeros(3)
    for role in ROLES:
        pair = gather(outputs.image), gather(outputs.texts[role])
        ids = gather(caption_ids(batch.texts[role]))
        contrastive += contrastive_loss(*pair, outputs.logit_scale, caption_ids=ids).detach()
        teachers = [
            TeacherPair(
                gather(batch.teacher_images[name]).normalized(),
                gather(batch.teacher_texts[role][name]).normalized(),
                scale,
            )
            for name, scale in (("a", 100.0), ("b", 50.0))
        ]
        distillation += affinity_loss(*pair, outputs.logit_scale, teachers).detach()
        for name in TEACHER_DIMS:
            feature += feature_loss(outputs.mapped_image[name], batch.teacher_images[name]).detach() / 2
            feature += feature_loss(outputs.mapped_texts[role][name], batch.teacher_texts[role][name]).detach() / 2
    expected = {"contrastive": contrastive, "distillation": distillation, "feature": feature}
    expected["loss"] = 0.3 * contrastive + 0.7 * distillation + 20 * feature
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {name: term.item() for name, term in expected.items()}, rel=1e-5
    )
    assert {name for name, term in terms.items() if term.requires_grad} == {"loss"}


@pytest.mark.parametrize(("config", "term"), [(LossConfig(kind="clip"), "contrastive"), (LossConfig(), "distillation")])
def test_a_recipe_of_one_term_computes_that_alone(config: LossConfig, term: str) -> None:
    batch = make_batch()
    loss = StudentLoss(config, {} if config.kind == "clip" else TEACHER_SCALES)
    outputs = embed(make_weights(), batch)
    terms = loss(outputs, batch)
    assert terms.keys() == {"loss", term}
    by_role = [loss(StudentOutputs(outputs.image, {r: outputs.texts[r]}, outputs.logit_scale), batch) for r in ROLES]
    assert terms["loss"].item() == pytest.approx(sum(each["loss"].item() for each in by_role), rel=1e-6)


def test_a_student_without_text_learns_in_the_space_of_its_one_teacher() -> None:
    batch = make_batch()
    image, scale = unit_rows(64, 6, 7).requires_grad_(), torch.tensor(20.0, requires_grad=True)
    terms = StudentLoss(LossConfig(distillation=0.5), {"a": 100.0})(StudentOutputs(image, {}, scale), batch)
    expected = 0.0
    for role in ROLES:
        u, v = batch.teacher_images["a"], batch.teacher_texts[role]["a"]
        text = F.normalize(v.float(), dim=1)
        expected += 0.5 * plain_contrastive(image, text, scale, None).item()
        expected += 0.5 * plain_affinity(image, text, scale, [TeacherPair(gather(u), gather(v), 100.0)]).item()
    assert terms["loss"].item() == pytest.approx(expected, rel=1e-5)
    terms["loss"].backward()  # type: ignore[no-untyped-call]
    assert all(leaf.grad is not None and leaf.grad.abs().max() > 0 for leaf in (image, scale))


def test_the_loss_is_fp32_under_autocast() -> None:
    batch = make_batch()
    outputs = embed(make_weights(), batch)
    loss = StudentLoss(EVERYTHING, TEACHER_SCALES)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = loss(outputs, batch)["loss"]
    assert under_autocast.dtype == torch.float32
    assert under_autocast.item() == loss(outputs, batch)["loss"].item()


def gradients(batch: Batch) -> Weights:
    weights = make_weights()
    loss = StudentLoss(EVERYTHING, TEACHER_SCALES)(embed(weights, batch), batch)["loss"]
    loss.backward()  # type: ignore[no-untyped-call]
    found: dict[str, Any] = {name: weight.grad for name, weight in weights.items()}
    return {"loss": loss.detach()} | found


def _run_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = gradients(make_batch().split(2)[rank])
    for value in found.values():
        dist.all_reduce(value)
    if rank == 0:
        torch.save({name: value / 2 for name, value in found.items()}, f"{folder}/mean.pt")
    dist.destroy_process_group()


def test_the_mean_of_two_processes_is_one_process_with_the_whole_batch(tmp_path: Path) -> None:
    mp.spawn(_run_process, (str(tmp_path),), nprocs=2)  # type: ignore[attr-defined, no-untyped-call]
    mean = torch.load(tmp_path / "mean.pt", weights_only=True)
    torch.testing.assert_close(mean, gradients(make_batch()), rtol=1e-4, atol=1e-5)


def test_caption_ids() -> None:
    tokens = torch.tensor([[49406, 320, 49407, 0], [320, 49406, 49407, 0], [49406, 320, 49407, 0]])
    ids = caption_ids(tokens).tolist()
    base = 6364136223846793005
    # Pinned: processes compare each other's ids.
    assert ids[0] % 2**64 == (49406 * base + 320 * base**2 + 49407 * base**3) % 2**64
    assert ids[0] == ids[2] != ids[1]


def test_refusals() -> None:
    with pytest.raises(ConfigError, match=r"loss\.teacher_scales: no teacher 'c' is read; those read: a, b"):
        StudentLoss(LossConfig(teacher_scales={"c": 1.0}), TEACHER_SCALES)
    with pytest.raises(ConfigError, match="mobileclip needs a teacher"):
        StudentLoss(LossConfig(), {})
    image_only = StudentOutputs(unit_rows(64, 5, 0), {}, SCALE)
    with pytest.raises(ConfigError, match="needs one teacher, not a, b"):
        StudentLoss(LossConfig(), TEACHER_SCALES)(image_only, make_batch())
    with pytest.raises(ConfigError, match="embed_dim: must be 6, that of teacher a"):
        StudentLoss(LossConfig(), {"a": 100.0})(image_only, make_batch())
