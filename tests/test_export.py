"""The exported image tower: PyTorch's embeddings at any batch size, branches folded, and nothing written otherwise."""

import copy
import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from reinforce.config import ConfigError, StudentModelConfig
from reinforce.deploy import export, graph
from reinforce.deploy.export import ExportReport, export_onnx
from reinforce.deploy.images import noise_images
from reinforce.deploy.model_file import ModelCard
from reinforce.image_tower import WEIGHTS_NAME
from reinforce.student.models import Student, build_student, load_student, save_student
from reinforce.weights import ModelError

DEMO = Path(export.__file__).parent.parent / "demo" / "models" / "demo-a"  # a ModifiedResNet, trained


def saved(folder: Path, backbone: str, **fields: Any) -> Path:
    """An image tower whose batch normalisation has seen images."""
    mean_std: Any = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    config = StudentModelConfig(backbone=backbone, embed_dim=16, text=None, **mean_std, **fields)
    student = build_student(config, seed=0)
    torch.manual_seed(0)
    with torch.no_grad():
        for _ in range(3):
            student.model.encode_image(3 * torch.randn(4, 3, student.image_size, student.image_size))
    save_student(student, folder)
    return folder


def in_onnxruntime(path: Path, pixels: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["embedding"], {"pixels": pixels.numpy()})[0])


def of_student(student: Student, pixels: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(student.model.encode_image(pixels, normalize=True).numpy())


def check(folder: Path, output: Path) -> ExportReport:
    report = export_onnx(folder, output)
    student = load_student(folder)
    for num_images in (1, 3):
        pixels = torch.randn(num_images, 3, student.image_size, student.image_size)
        embeddings = in_onnxruntime(output, pixels)
        assert embeddings.shape == (num_images, student.embed_dim)
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(embeddings, of_student(student, pixels), atol=1e-4)
    assert report.agreements["rgb"].min_cosine > 0.99999
    assert (report.num_bytes, report.card.embed_dim) == (output.stat().st_size, student.embed_dim)
    assert list(output.parent.glob(f".{output.name}*")) == []
    return report


def test_a_fastvit_goes_without_its_training_branches(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = saved(tmp_path / "student", "fastvit_t8", image_size=64)
    report = check(folder, tmp_path / "tower.onnx")
    assert report.num_folded_parameters > 10_000
    model = onnx.load(tmp_path / "tower.onnx")
    kinds = [node.op_type for node in model.graph.node]
    assert "BatchNormalization" not in kinds
    branches = sum(isinstance(module, torch.nn.Conv2d) for module in load_student(folder).model.modules())
    assert kinds.count("Conv") < branches
    assert sum(parameter.numel() for parameter in load_student(folder).model.visual.parameters()) == (
        report.num_parameters + report.num_folded_parameters
    )
    assert capfd.readouterr() == ("", "")


def test_a_convolutional_tower(tmp_path: Path) -> None:
    report = check(saved(tmp_path / "student", "test_efficientnet", image_size=64), tmp_path / "tower.onnx")
    assert report.num_folded_parameters == 0
    model = onnx.load(tmp_path / "tower.onnx")
    card = ModelCard.from_metadata({item.key: item.value for item in model.metadata_props})
    assert (card.mean, card.std, card.image_size) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 64)
    assert (card.precision, card.target, card.labels) == ("fp32", None, None)
    assert card.student_sha256 == hashlib.sha256((tmp_path / "student" / WEIGHTS_NAME).read_bytes()).hexdigest()
    assert card.agreement["num_images"] == report.agreements["rgb"].num_images == 8
    assert report.agreements["rgb"].top1 == 1
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    assert str(Path.cwd()).encode() not in (tmp_path / "tower.onnx").read_bytes()


def test_a_transformer(tmp_path: Path) -> None:
    check(saved(tmp_path / "student", "test_vit"), tmp_path / "tower.onnx")


def test_a_tower_of_open_clips_own(tmp_path: Path) -> None:
    check(DEMO, tmp_path / "tower.onnx")


def test_a_file_that_disagrees_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaging(visual: Any) -> Any:
        folded = copy.deepcopy(visual)
        with torch.no_grad():
            folded.layer2[0].conv2.weight.mul_(1.5)
        return folded

    monkeypatch.setattr(export, "reparameterize_model", damaging)
    output = tmp_path / "tower.onnx"
    output.write_bytes(b"an earlier one")
    with pytest.raises(ModelError, match=r"agree to a cosine at worst of 0\.\d{6}, less than 0.9999; nothing was"):
        export_onnx(DEMO, output)
    assert output.read_bytes() == b"an earlier one"
    assert list(tmp_path.iterdir()) == [output]


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"no open_clip_config\.json in that folder"):
        export_onnx(tmp_path, tmp_path / "tower.onnx")
    with pytest.raises(ModelError, match=r"missing/tower\.onnx is a folder or in none; name a file"):
        export_onnx(DEMO, tmp_path / "missing" / "tower.onnx")
    with pytest.raises(ConfigError, match="--int8: pass --shards with images like those to come"):
        export_onnx(DEMO, tmp_path / "tower.onnx", target="x86")
    with pytest.raises(ModelError, match="opset must be at least 18, not 17"):
        export_onnx(DEMO, tmp_path / "tower.onnx", opset=17)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(graph, "find_spec", lambda name: None if name == "onnxscript" else find_spec(name))
    with pytest.raises(ModelError, match="export needs onnxscript: pip install onnxscript"):
        export_onnx(DEMO, tmp_path / "tower.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_images_to_check_with_are_varied_and_the_same_every_time() -> None:
    images = noise_images(64)
    np.testing.assert_array_equal(images, noise_images(64))
    assert images.shape == (8, 64, 64, 3)
    assert 100 < images.mean() < 156
    assert images.reshape(8, -1).std(axis=1).min() > 30
