"""Students that are trained with 8-bit weights and inputs: rounded as export rounds, saved in full, resumed exactly."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from onnx import TensorProto, helper, numpy_helper
from timm.layers import ScaledStdConv2d
from timm.models.fastvit import MobileOneBlock
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from reinforce.config import ConfigError, LossConfig, OptimizerConfig, StudentConfig, StudentModelConfig
from reinforce.deploy.qdq import QdqWriter
from reinforce.deploy.quantize import SCHEMES
from reinforce.student.fake_quant import InputRounding, WeightRounding, add_rounding, without_rounding
from reinforce.student.learner import Learner, backward
from reinforce.student.models import Student, build_student
from reinforce.student.optimize import make_average
from reinforce.student.triplets import TripletLoss
from tests.triplets import random_batch

MODEL = {"backbone": "test_efficientnet", "projection": "mlp", "image_size": 32, "embed_dim": 12, "text": None}


def student() -> Student:
    return build_student(StudentModelConfig.model_validate(MODEL), seed=0)


def rounded_student() -> Student:
    made = student()
    add_rounding(made.model.visual, made.image_size)
    return made


def pixels(seed: int, num_rows: int = 4) -> torch.Tensor:
    return torch.randn(num_rows, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


# As export rounds.


def test_weights_are_those_of_the_exported_file_once_a_batch_norm_is_folded_in() -> None:
    generator = np.random.default_rng(0)
    weights = generator.normal(size=(6, 4, 3, 3)).astype(np.float32)
    weights[5] = 0
    # Of both signs, as the gains of a BatchNorm divided by its deviations are.
    factors = generator.normal(size=6).astype(np.float32)
    folded = numpy_helper.from_array(weights * factors[:, None, None, None], "weights")
    node = helper.make_node("Conv", ["x", "weights"], ["y"])
    inputs, outputs = ([helper.make_tensor_value_info(name, TensorProto.FLOAT, None)] for name in "xy")
    graph = helper.make_graph([node], "one", inputs, outputs, [folded])
    QdqWriter(graph, {}, SCHEMES["x86"]).quantize_weights(node)
    constants = {constant.name: numpy_helper.to_array(constant) for constant in graph.initializer}
    of_file = constants["weights.quantized"].astype(np.float32) * constants["weights.scale"][:, None, None, None]
    of_training = WeightRounding()(torch.from_numpy(weights)).numpy() * factors[:, None, None, None]
    np.testing.assert_allclose(of_training, of_file, rtol=1e-5, atol=1e-7)
    assert np.abs(of_training - weights * factors[:, None, None, None]).max() > 1e-3


@pytest.mark.parametrize(("least", "most"), [(-1.0, 3.0), (0.5, 4.0), (-2.0, -0.1), (-0.37, 5.11), (0.0, 6.0)])
def test_inputs_are_rounded_as_the_exported_file_rounds_them(least: float, most: float) -> None:
    rounding = InputRounding()
    values = torch.linspace(least, most, 1001)
    rounding(values)
    rounding.eval()
    scale, zero_point = SCHEMES["x86"].parameters(least, most)
    found_scale, found_zero_point = rounding.parameters_of_range()
    assert found_scale.item() == pytest.approx(float(scale), rel=1e-6)
    assert found_zero_point.item() == zero_point
    wider = torch.empty(1000).uniform_(least - 1, most + 1, generator=torch.Generator().manual_seed(0))
    integers = np.clip(np.rint(wider.numpy() / scale) + zero_point, 0, 255)
    found = rounding(wider).numpy()
    np.testing.assert_allclose(found, (integers - zero_point) * scale, atol=float(scale) * 1e-3)
    assert len(np.unique(found)) > 200


def test_a_channel_of_zeros_and_an_input_of_zeros_stay_so() -> None:
    assert not WeightRounding()(torch.zeros(2, 3)).any()
    assert not InputRounding()(torch.zeros(4)).any()


def test_gradients_pass_but_for_what_is_beyond_the_range() -> None:
    weights = torch.randn(3, 5, requires_grad=True)
    WeightRounding()(weights).sum().backward()
    assert weights.grad is not None
    assert bool((weights.grad == 1).all())
    rounding = InputRounding()
    rounding(torch.tensor([-1.0, 1.0]))
    values = torch.tensor([-3.0, -0.5, 0.5, 3.0], requires_grad=True)
    rounding.eval()(values).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0, 1, 1, 0]


# The ranges.


def test_ranges_move_while_training_and_are_frozen_in_evaluation() -> None:
    rounding = InputRounding().eval()
    wide, narrow = torch.tensor([-4.0, 8.0]), torch.tensor([-1.03, 1.04])
    torch.testing.assert_close(rounding(narrow), narrow, rtol=0, atol=0)
    rounding.train()(wide)
    assert (rounding.least.item(), rounding.most.item()) == (-4, 8)
    rounding(narrow)
    assert rounding.least.item() == pytest.approx(-4 + 0.01 * 2.97)
    assert rounding.most.item() == pytest.approx(8 - 0.01 * 6.96)
    before = rounding.most.item()
    assert not torch.equal(rounding.eval()(narrow), narrow)
    assert rounding.most.item() == before


def test_parts_of_a_batch_are_seen_once_and_ranges_are_averaged_with_the_weights() -> None:
    made = rounded_student()
    loss = LossConfig(kind="triplet", bank="b", num_negatives=2)
    learner = Learner(made, loss, {})
    average = make_average(learner, OptimizerConfig(ema=0.5))
    assert average is not None
    batch = random_batch(8)
    for _ in range(2):
        backward(learner, TripletLoss(loss, {"a": 12}, 12, ("rgb",)), batch, num_parts=2)
        average.update_parameters(learner)
    counts = {int(buffer) for name, buffer in learner.named_buffers() if name.endswith("input_rounding.num_batches")}
    assert counts == {4}
    own = [module for module in learner.modules() if isinstance(module, InputRounding)]
    averaged = [module for module in average.modules() if isinstance(module, InputRounding)]
    assert len(own) == len(averaged) > 5
    # A copy of a layer observes for itself.
    before = averaged[3].num_batches.item()
    average.module.train()(batch.images, {}, {})
    assert (own[3].num_batches.item(), averaged[3].num_batches.item()) == (4, before + 1)


# The tower.


def test_every_layer_is_rounded_but_the_one_that_reads_the_pixels() -> None:
    made, plain = rounded_student(), student()
    layers = [module for module in made.model.visual.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    in_full = [layer for layer in layers if not hasattr(layer, "input_rounding")]
    assert in_full == [made.model.visual.trunk.conv_stem]
    assert made.model.training
    assert len(layers) == sum(isinstance(m, nn.Conv2d | nn.Linear) for m in plain.model.visual.modules()) > 10
    made.model.encode_image(pixels(0))
    with torch.no_grad():
        rounded, full = (each.model.eval().encode_image(pixels(1)) for each in (made, plain))
    assert not torch.equal(rounded, full)
    # Batch statistics of one step are in both or in neither.
    assert torch.nn.functional.cosine_similarity(rounded, full).min() > 0.5


def test_what_is_saved_has_plain_names_and_weights_in_full() -> None:
    made, plain = rounded_student(), student()
    names = list(made.model.state_dict())
    saved = without_rounding(made.model)
    assert saved.state_dict().keys() == plain.model.state_dict().keys()
    assert all(torch.equal(tensor, plain.model.state_dict()[name]) for name, tensor in saved.state_dict().items())
    with torch.no_grad():
        expected, found = (model.eval().encode_image(pixels(0)) for model in (plain.model, saved))
    assert torch.equal(expected, found)
    assert list(made.model.state_dict()) == names
    assert without_rounding(plain.model) is plain.model


def test_one_of_several_processes_trains_with_it(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        loss = LossConfig(kind="triplet", bank="b", num_negatives=2)
        learner = Learner(rounded_student(), loss, {})
        for _ in range(2):
            backward(DistributedDataParallel(learner), TripletLoss(loss, {"a": 12}, 12, ("rgb",)), random_batch(8))
        assert all(p.grad is not None for p in learner.parameters() if p.requires_grad)
    finally:
        dist.destroy_process_group()


def test_what_export_rounds_otherwise_is_refused() -> None:
    branches = nn.Sequential(MobileOneBlock(3, 8, kernel_size=3))
    with pytest.raises(ConfigError, match=r"int8 needs a network without branches that export folds \(0 has them\)"):
        add_rounding(branches, 32)
    attention = nn.Sequential(nn.MultiheadAttention(8, 2))
    with pytest.raises(ConfigError, match=r"int8 needs an image tower of timm; give student.model.backbone"):
        add_rounding(attention, 32)
    for option in ("compile", "gradient_checkpointing"):
        with pytest.raises(ValueError, match="int8 goes without compile and without gradient_checkpointing"):
            StudentConfig.model_validate({"model": MODEL, "steps": 1, "quantization": "int8", option: True})


class WithoutCall(nn.Module):
    """As attention of timm's BEiT: it uses the weights of a matrix that it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.qkv = nn.Conv2d(3, 8, 1), nn.Linear(8, 8)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(self.first(pixels).mean((2, 3)), self.qkv.weight)


def test_weights_that_are_not_used_as_they_are_by_their_layer_are_refused() -> None:
    with pytest.raises(ConfigError, match="qkv is never called as one; name another"):
        add_rounding(WithoutCall(), 32)
    with pytest.raises(ConfigError, match="those of 1 are standardised first; name another"):
        add_rounding(nn.Sequential(nn.Conv2d(3, 8, 1), ScaledStdConv2d(8, 8, 3)), 32)
