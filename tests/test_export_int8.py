"""Exports in int8 and what every export carries: QDQ that suits its target, labels, the same bytes, or no file."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from reinforce.config import ConfigError
from reinforce.deploy import quantize
from reinforce.deploy.calibration import Ranges, _best_cut, activation_ranges
from reinforce.deploy.export import ExportReport, export_onnx
from reinforce.deploy.images import NormalisedImages, choose_images
from reinforce.deploy.model_file import ModelCard
from reinforce.deploy.quantize import Target
from reinforce.deploy.structure import check_structure
from reinforce.student.models import load_student
from reinforce.weights import ModelError
from tests.banks import save_random_bank
from tests.tars import image_bytes, write_tar
from tests.test_export import in_onnxruntime, of_student, saved

TARGETS: tuple[Target, ...] = ("x86", "arm", "tensorrt")
LABELS = ("red", "green", "blue", "white")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two shards of 24 images, one of which is cut off."""
    folder = tmp_path_factory.mktemp("shards")
    for name, start in (("a", 0), ("b", 24)):
        images = [(f"{index:03d}.png", image_bytes(index)) for index in range(start, start + 24)]
        write_tar(folder / f"{name}.tar", [*images[:-1], (images[-1][0], images[-1][1][: -80 if start else None])])
    return str(folder)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SiLU, depthwise convolutions and squeeze-and-excitation, with a bank of its teacher."""
    folder = saved(tmp_path_factory.mktemp("student") / "student", "test_efficientnet", image_size=64)
    save_random_bank(folder, "colours", LABELS, 16)
    return folder


@pytest.fixture(scope="module")
def exported(student: Path, shards: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ExportReport]:
    folder = tmp_path_factory.mktemp("exported")
    return {
        target: export_onnx(
            student, folder / f"{target}.onnx", target=target, shards=[shards], num_images=16, num_calibration_images=16
        )
        for target in TARGETS
    }


@pytest.mark.parametrize("target", TARGETS)
def test_every_activation_is_as_its_target_wants_it(exported: dict[str, ExportReport], target: Target) -> None:
    model = onnx.load(exported[target].output)
    onnx.checker.check_model(model)
    constants = {constant.name: numpy_helper.to_array(constant) for constant in model.graph.initializer}
    zero_points = [constants[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert check_structure(model, target) == len(zero_points) > 15
    assert {point.dtype for point in zero_points} == {np.dtype(np.uint8 if target == "x86" else np.int8)}
    assert any(point.any() for point in zero_points) == (target != "tensorrt")
    makers = {name: node for node in model.graph.node for name in node.output}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    floats = [node for node in convolutions if makers.get(node.input[1]) is None]
    assert [node.input[0] for node in floats] == ["pixels"]
    for node in convolutions:
        if node not in floats:
            weights = [constants[name] for name in makers[node.input[1]].input]
            assert (weights[0].dtype, weights[1].shape) == (np.int8, weights[0].shape[:1])
    sigmoids = [node for node in model.graph.node if node.op_type == "Sigmoid"]
    in_integers = [node for node in sigmoids if getattr(makers[node.input[0]], "op_type", "") == "DequantizeLinear"]
    assert len(in_integers) == (0 if target == "tensorrt" else len(sigmoids) - 1)
    assert ("int32" in {str(value.dtype) for name, value in constants.items() if name.endswith("bias.quantized")}) == (
        target != "tensorrt"
    )


@pytest.mark.parametrize("target", TARGETS)
def test_it_embeds_as_the_student_does_at_any_batch_size(
    exported: dict[str, ExportReport], student: Path, shards: str, target: Target
) -> None:
    report = exported[target]
    loaded = load_student(student)
    images = choose_images([shards], 64, 5, seed=1).images["rgb"]
    pixels = NormalisedImages(images, loaded)[:]
    together = in_onnxruntime(report.output, pixels)
    alone = np.concatenate([in_onnxruntime(report.output, pixels[index : index + 1]) for index in range(5)])
    np.testing.assert_allclose(together, alone, atol=1e-3)
    assert (together * of_student(loaded, pixels)).sum(axis=1).mean() > 0.98
    assert report.num_bytes < 0.45 * 4 * report.num_parameters
    assert report.num_calibration_images + report.agreements["rgb"].num_images + report.drops["corrupt_image"] == 32


def test_x86_fuses_all_of_it(exported: dict[str, ExportReport], tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(exported["x86"].output, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("QLinearConv") > 10
    assert kinds.count("QLinearGlobalAveragePool") >= 2
    assert {kind for kind in kinds if "Sigmoid" in kind} <= {"QLinearSigmoid", "Sigmoid", "QuickGelu"}
    assert kinds.count("QuantizeLinear") <= 2


def test_the_labels_and_the_agreement_go_with_the_file(exported: dict[str, ExportReport], student: Path) -> None:
    report = exported["x86"]
    model = onnx.load(report.output)
    card = ModelCard.from_metadata({item.key: item.value for item in model.metadata_props})
    assert (card.precision, card.target) == ("int8", "x86")
    assert card.labels is not None
    assert report.card.labels is not None
    assert (card.labels.bank, card.labels.teacher, card.labels.labels) == ("colours", "random", LABELS)
    assert card.labels.logit_scale == 50
    np.testing.assert_allclose(card.labels.embeddings, report.card.labels.embeddings, atol=1e-3)
    assert card.agreement["mean_cosine"] == report.agreements["rgb"].mean_cosine
    assert 0.8 <= card.agreement["top1"] <= 1
    assert {"torch", "onnxruntime"} < card.software.keys()


def test_the_same_student_and_images_give_the_same_bytes(
    exported: dict[str, ExportReport], student: Path, shards: str, tmp_path: Path
) -> None:
    again = tmp_path / "again.onnx"
    export_onnx(student, again, target="x86", shards=[shards], num_images=16, num_calibration_images=16)
    assert again.read_bytes() == exported["x86"].output.read_bytes()


def test_an_int8_file_that_disagrees_is_not_written(
    student: Path, shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a calibration whose images had but a fraction of the range."""

    def narrow(model: Any, tensors: tuple[str, ...], pixels: NormalisedImages) -> Ranges:
        return {name: (low / 50, high / 50) for name, (low, high) in activation_ranges(model, tensors, pixels).items()}

    monkeypatch.setattr(quantize, "activation_ranges", narrow)
    message = r"the int8 file for arm and PyTorch agree to a cosine on average of -?0\.\d{6}, less than 0.98; nothing"
    with pytest.raises(ModelError, match=message):
        export_onnx(
            student, tmp_path / "tower.onnx", target="arm", shards=[shards], num_images=8, num_calibration_images=8
        )
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_does_not_suit_its_target_is_refused(exported: dict[str, ExportReport]) -> None:
    model = onnx.load(exported["tensorrt"].output)
    with pytest.raises(ModelError, match=r"node \S+ does not suit x86; nothing was written"):
        check_structure(model, "x86")
    node = [node for node in model.graph.node if node.op_type == "QuantizeLinear"][-1]
    (zero_point,) = (constant for constant in model.graph.initializer if constant.name == node.input[2])
    zero_point.CopyFrom(numpy_helper.from_array(np.array(1, np.int8), zero_point.name))
    with pytest.raises(ModelError, match=f"node {node.name} does not suit tensorrt"):
        check_structure(model, "tensorrt")


def test_images_are_chosen_by_seed_from_every_shard_and_drops_are_counted(shards: str) -> None:
    chosen = choose_images([shards], 32, 20, seed=3)
    np.testing.assert_array_equal(chosen.images["rgb"], choose_images([shards], 32, 20, seed=3).images["rgb"])
    assert not np.array_equal(chosen.images["rgb"], choose_images([shards], 32, 20, seed=4).images["rgb"])
    every = choose_images([shards], 32, 100, seed=0)
    assert (every.num_samples, dict(every.drops)) == (47, {"corrupt_image": 1})
    assert len(np.unique(every.images["rgb"].reshape(47, -1), axis=0)) == 47


def test_an_outlier_is_cut_off_and_an_even_tensor_is_not() -> None:
    even = np.full(2048, 100)
    outlier = np.concatenate([np.full(256, 10_000), np.zeros(1791, np.int64), [1]])
    assert _best_cut(even) == 1
    assert _best_cut(outlier) < 0.3


def test_banks_that_do_not_fit_are_refused(student: Path, shards: str, tmp_path: Path) -> None:
    other = shutil.copytree(student, tmp_path / "other")
    uri = save_random_bank(tmp_path, "wide", LABELS, 8)
    with pytest.raises(ConfigError, match="has 8 values a label, the student 16 an image; name a bank of its teacher"):
        export_onnx(other, tmp_path / "x.onnx", bank=uri)
    save_random_bank(other, "more", LABELS, 16)
    with pytest.raises(ConfigError, match=r"has the banks colours, more: name one with --bank \S+/banks/colours"):
        export_onnx(other, tmp_path / "x.onnx")
    document: Any = (other / "student.json").read_text().replace("{", '{"teachers": {"random": "%s"},' % ("1" * 64), 1)
    (other / "student.json").write_text(document)
    with pytest.raises(ConfigError, match="its teacher random has other weights than the student's"):
        export_onnx(other, tmp_path / "x.onnx", bank=str(other / "banks" / "more"))
    with pytest.raises(ConfigError, match="--shards give 1 images, too few to calibrate and to check with"):
        export_onnx(student, tmp_path / "x.onnx", target="x86", shards=[shards], num_images=1, num_calibration_images=0)
    assert not (tmp_path / "x.onnx").exists()
