"""Students: built from a recipe, the same through open_clip's `local-dir:`, and never silently random."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.layers import DropPath

from reinforce.config import ConfigError, StudentModelConfig
from reinforce.student import models
from reinforce.student.blueprint import draw_blueprint
from reinforce.student.models import Student, build_student, load_student, save_student
from reinforce.weights import ModelError
from tests.test_student_tokenizer import DEMO_TOKENIZER, TEXTS, low_end_tokenizer

TEXT: dict[str, Any] = {"context_length": 12, "width": 32, "heads": 2, "layers": 1}
SMALL: dict[str, Any] = {"backbone": "test_efficientnet", "image_size": 64, "embed_dim": 24, "text": TEXT}


def config(**fields: Any) -> StudentModelConfig:
    return StudentModelConfig(**fields)


def small(**fields: Any) -> StudentModelConfig:
    return config(**SMALL | {"tokenizer": DEMO_TOKENIZER} | fields)


def seasoned(student: Student) -> Student:
    """As after a step of training: every weight and every running statistic is its own."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        student.model.encode_image(2 * torch.randn(4, 3, student.image_size, student.image_size, generator=generator))
        for parameter in student.model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    student.model.eval()
    return student


def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    return [Image.fromarray(array).resize((150, 97 + 80 * i)) for i, array in enumerate(coarse)]


@torch.no_grad()
def embeddings(model: Any, pixels: torch.Tensor, tokens: torch.Tensor | None = None) -> list[torch.Tensor]:
    of_texts = [] if tokens is None else [model.encode_text(tokens)]
    return [model.encode_image(pixels), *of_texts, model.logit_scale.detach()]


def equal(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


@pytest.fixture(scope="module")
def student() -> Student:
    return seasoned(build_student(small(), seed=0))


@pytest.fixture
def folder(student: Student, tmp_path: Path) -> Path:
    save_student(student, tmp_path / "student")
    return tmp_path / "student"


CASES: dict[str, dict[str, Any]] = {
    "backbone, CLIP's encoding": SMALL | {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)},
    "mlp, a tokenizer's folder": SMALL | {"projection": "mlp", "tokenizer": DEMO_TOKENIZER},
    "transformer": SMALL | {"backbone": "test_vit", "image_size": None, "tokenizer": DEMO_TOKENIZER},
    "its classifier projects": SMALL | {"backbone": "mobilenetv4_conv_small", "tokenizer": DEMO_TOKENIZER},
    "low end token": SMALL | {"tokenizer": "low end token"},
    "architecture": {"architecture": "ViT-S-32-alt", "image_size": 64, "tokenizer": DEMO_TOKENIZER},
}


@pytest.mark.parametrize("case", CASES)
def test_open_clip_opens_the_folder_to_the_same_embeddings(case: str, tmp_path: Path) -> None:
    fields = dict(CASES[case])
    if fields.get("tokenizer") == case:
        fields["tokenizer"] = low_end_tokenizer(tmp_path / "tokenizer")
    built = seasoned(build_student(config(**fields), seed=1))
    save_student(built, tmp_path / "student")
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'student'}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'student'}")
    pixels = torch.stack([preprocess(image) for image in images()])
    assert pixels.shape[2] == built.image_size
    normalise = preprocess.transforms[-1]
    assert (normalise.mean, normalise.std) == (list(built.mean), list(built.std))
    if "mean" in fields:
        assert (built.mean, built.std) == (fields["mean"], fields["std"])
    tokens = tokenize(TEXTS)
    assert built.tokenizer
    torch.testing.assert_close(built.tokenizer(TEXTS), tokens, rtol=0, atol=0)
    expected = embeddings(built.model, pixels, tokens)
    assert (expected[0].shape, expected[1].shape) == ((2, built.embed_dim), (len(TEXTS), built.embed_dim))
    assert len({tuple(row) for row in expected[1].tolist()}) == len(TEXTS)
    assert equal(embeddings(model.eval(), pixels, tokens), expected)
    loaded = load_student(tmp_path / "student")
    assert equal(embeddings(loaded.model, pixels, loaded.tokenizer(TEXTS) if loaded.tokenizer else None), expected)
    same = ("image_size", "mean", "std", "context_length", "embed_dim", "config")
    assert [getattr(loaded, name) for name in same] == [getattr(built, name) for name in same]


def test_the_same_seed_gives_the_same_weights_and_leaves_the_callers_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    some, same, other = (build_student(small(), seed).model.state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.rand(1), expected)
    assert all(module.training for module in build_student(small(), 3).model.modules())
    assert all(torch.equal(some[name], same[name]) for name in some)
    assert not torch.equal(some["visual.head.proj.weight"], other["visual.head.proj.weight"])


def test_an_image_tower_alone_is_saved_for_load_student_only(tmp_path: Path) -> None:
    built = seasoned(build_student(config(**SMALL | {"text": None}), seed=0))
    assert (built.has_text, built.tokenizer, built.context_length) == (False, None, None)
    save_student(built, tmp_path / "tower")
    loaded = load_student(tmp_path / "tower")
    pixels = torch.randn(2, 3, 64, 64)
    assert equal(embeddings(loaded.model, pixels), embeddings(built.model, pixels))
    assert (loaded.has_text, loaded.config) == (False, built.config)
    continued = build_student(config(**SMALL | {"text": None, "checkpoint": str(tmp_path / "tower")}), seed=7)
    assert equal(embeddings(continued.model.eval(), pixels), embeddings(built.model, pixels))
    with pytest.raises(FileNotFoundError, match="config file missing"):
        open_clip.create_model(f"local-dir:{tmp_path / 'tower'}")


def test_normalisation_is_what_the_weights_expect() -> None:
    assert build_student(config(**SMALL), 0).mean == pytest.approx(open_clip.OPENAI_DATASET_MEAN)
    mobile = draw_blueprint(config(architecture="MobileCLIP-S1")).config
    assert mobile["preprocess_cfg"]["mean"] == [0, 0, 0]
    assert mobile["preprocess_cfg"]["interpolation"] == "bicubic"  # as our views are; the tag says bilinear
    of_timm = draw_blueprint(config(**SMALL | {"backbone": "test_vit", "checkpoint": "imagenet"})).config
    assert of_timm["preprocess_cfg"]["mean"] == [0.5, 0.5, 0.5]


def test_the_activation_is_what_the_weights_were_trained_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_clip, "download_pretrained", lambda _: "weights")
    for architecture in ("ViT-B-16", "ViT-B-16-quickgelu"):
        for tag, is_quick in {"openai": True, "laion2b_s34b_b88k": False}.items():
            if open_clip.get_pretrained_cfg(architecture, tag):
                drawn = draw_blueprint(config(architecture=architecture, checkpoint=tag))
                assert drawn.config["model_cfg"]["quick_gelu"] is is_quick


def test_drop_path_is_the_backbone_s_own_unless_it_is_given(tmp_path: Path) -> None:
    def rates(built: Student) -> list[float]:
        drops = [module for module in built.model.visual.modules() if isinstance(module, DropPath)]
        return sorted({round(drop.drop_prob, 3) for drop in drops})

    fields = SMALL | {"backbone": "test_vit", "image_size": None, "text": None}
    plain, built = (build_student(config(**fields | given), seed=0) for given in ({}, {"drop_path": 0.2}))
    assert rates(plain) == []
    assert "timm_drop_path" not in plain.config["model_cfg"]["vision_cfg"]
    assert rates(built) == [0.04, 0.08, 0.12, 0.16, 0.2]
    pixels = torch.randn(2, 3, built.image_size, built.image_size)
    # It drops nothing once it is used, and the weights are those of before.
    assert equal(embeddings(built.model.eval(), pixels), embeddings(plain.model.eval(), pixels))
    save_student(built, tmp_path / "student")
    assert rates(load_student(tmp_path / "student")) == rates(built)
    again = config(**fields | {"drop_path": 0.0, "checkpoint": str(tmp_path / "student")})
    assert rates(build_student(again, seed=1)) == []
    with pytest.raises(ConfigError, match=r"^student.model.drop_path: vgg11 has none; leave it out$"):
        draw_blueprint(config(**fields | {"backbone": "vgg11", "drop_path": 0.2}))
    for text in ({}, {"text": None}):
        with pytest.raises(ValueError, match="drop_path belongs to a backbone"):
            config(**{"architecture": "RN50", "drop_path": 0.2, **text})


# Checkpoints


def test_a_student_starts_where_another_ended(student: Student, folder: Path) -> None:
    pixels = torch.randn(2, 3, 64, 64)
    assert student.tokenizer
    expected = embeddings(student.model, pixels, student.tokenizer(TEXTS))
    # Tokenizer and image size are not said here: they are the checkpoint's.
    continued = build_student(config(**SMALL | {"image_size": None, "checkpoint": str(folder)}), seed=7)
    assert continued.tokenizer
    assert (continued.model.training, continued.image_size) == (True, 64)
    assert equal(embeddings(continued.model.eval(), pixels, continued.tokenizer(TEXTS)), expected)
    larger = build_student(small(checkpoint=str(folder), image_size=96), seed=7)
    assert larger.image_size == 96
    assert equal(embeddings(larger.model.eval(), pixels, student.tokenizer(TEXTS)), expected)


def test_a_student_starts_from_a_file(student: Student, folder: Path, tmp_path: Path) -> None:
    pixels, safe, unsafe = torch.randn(2, 3, 64, 64), folder / "open_clip_model.safetensors", tmp_path / "model.pt"
    torch.save(load_file(safe), unsafe)
    for file in (str(safe), str(unsafe), f"file://{safe}"):
        continued = build_student(small(checkpoint=file), seed=7)
        assert equal(embeddings(continued.model.eval(), pixels), embeddings(student.model, pixels))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"projection": "mlp"}, "student.model.projection: timm_proj is mlp, that of the checkpoint .* is linear"),
        ({"backbone": "test_resnet"}, "student.model.backbone: timm_model_name is test_resnet, that of .* is test_eff"),
        ({"embed_dim": 32}, "student.model.embed_dim: embed_dim is 32, that of the checkpoint .* is 24"),
        ({"text": TEXT | {"heads": 4}}, "student.model.text.heads: heads is 4, that of the checkpoint .* is 2"),
        ({"text": None}, "student.model.text: the checkpoint .* is with a text tower"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(fields: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        build_student(small(checkpoint=str(folder), **fields), seed=0)


def test_imagenet_asks_timm_for_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_pretrained(model: torch.nn.Module, **_: Any) -> None:
        for parameter in model.parameters():
            torch.nn.init.constant_(parameter, 0.5)

    monkeypatch.setattr(timm.models._builder, "load_pretrained", load_pretrained)
    built = build_student(small(checkpoint="imagenet"), seed=0)
    assert all(bool((parameter == 0.5).all()) for parameter in built.model.visual.trunk.parameters())
    assert built.config["model_cfg"]["vision_cfg"]["timm_model_pretrained"] is False


# What is refused, in one line that names the field


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"architecture": "MobileClip-S1"},
            "student.model.architecture: .*'MobileClip-S1'; did you mean MobileCLIP-S1",
        ),
        ({"architecture": "fastvit_t8"}, "student.model.architecture: fastvit_t8 is a model of timm; give it as backb"),
        ({"architecture": "coca_ViT-B-32"}, "student.model.architecture: coca_ViT-B-32 has a decoder"),
        ({"backbone": "fastvit_t9"}, "student.model.backbone: timm has no 'fastvit_t9'; did you mean fastvit_t"),
        ({"backbone": "RN50"}, "student.model.backbone: RN50 is a model of open_clip; give it as architecture"),
        (
            {"backbone": "test_vit.in22k"},
            "student.model.backbone: timm has no weights test_vit.in22k; known: test_vit.r",
        ),
        (SMALL | {"backbone": "vit_tiny_patch16_224"}, "student.model.image_size: vit_tiny_patch16_224 .* 64 pixels"),
        ({"backbone": "mobilenetv4_conv_small", "projection": "mlp"}, "student.model.projection: mlp does not fit"),
        (SMALL | {"text": TEXT | {"heads": 5}}, "student.model.text: width 32 does not divide by 5 heads"),
        (SMALL | {"text": None, "tokenizer": "x"}, "student.model.tokenizer: there is no text tower"),
        (SMALL | {"tokenizer": "no/such"}, "student.model.tokenizer: .*no/such is no folder and was not fetched"),
        (
            SMALL | {"backbone": "test_coatnet", "checkpoint": "imagenet"},
            "student.model.checkpoint: timm has no weights",
        ),
        (SMALL | {"checkpoint": "imagenet"}, "student.model.checkpoint: imagenet of test_efficientnet: "),
        (SMALL | {"checkpoint": "gone.pt"}, "student.model.checkpoint: gone.pt is no file and no student's folder"),
        (
            {"architecture": "MobileCLIP-S1", "checkpoint": "datacomp"},
            "student.model.checkpoint: datacomp is no file .* tag of MobileCLIP-S1 .known: datacompdr.",
        ),
        ({"architecture": "MobileCLIP-S1", "checkpoint": "datacompdr"}, "student.model.checkpoint: .* not fetched"),
    ],
)
def test_what_does_not_exist_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ModelError), match=message) as refusal:
        build_student(config(**fields), seed=0)
    assert "\n" not in str(refusal.value)


def test_a_damaged_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / "open_clip_model.safetensors")
    other = tmp_path / "other.safetensors"
    for damaged in (weights | {"visual.head.proj.weight": torch.zeros(7, 7)}, {"logit_scale": weights["logit_scale"]}):
        save_file(damaged, other)
        with pytest.raises(ModelError, match=r"^student.model.checkpoint: .*other.safetensors does not fit the model:"):
            build_student(small(checkpoint=str(other)), seed=0)
    for name in ("noise.pt", "noise.safetensors"):
        (tmp_path / name).write_bytes(b"no weights at all")
        with pytest.raises(ModelError, match=r"^student.model.checkpoint: .*noise.* does not fit|is not read"):
            build_student(small(checkpoint=str(tmp_path / name)), seed=0)
    (folder / "open_clip_model.safetensors").write_bytes(other.read_bytes())
    with pytest.raises(ModelError, match=r"^student .*student: Error"):
        load_student(folder)
    (folder / "open_clip_model.safetensors").unlink()
    for use in (load_student, lambda missing: build_student(small(checkpoint=str(missing)), 0)):
        with pytest.raises(ModelError, match=r"no open_clip_model\.safetensors in that folder"):
            use(folder)


# Folders


def test_a_folder_is_there_whole_or_not_at_all(student: Student, tmp_path: Path, monkeypatch: Any) -> None:
    target = tmp_path / "runs" / "student"
    save_student(student, target, extra={"recipe": {"steps": 3}})
    assert sorted(path.name for path in target.iterdir()) == [
        "open_clip_config.json",
        "open_clip_model.safetensors",
        "student.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    written = json.loads((target / "student.json").read_text())
    assert written["recipe"] == {"steps": 3}
    assert written["software"]["timm"] == timm.__version__
    everything = "".join((target / name).read_text() for name in ("open_clip_config.json", "tokenizer_config.json"))
    assert str(Path.cwd()) not in everything
    save_student(student, target, extra={"recipe": {"steps": 4}})
    assert json.loads((target / "student.json").read_text())["recipe"] == {"steps": 4}

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(models, "save_tensors", fail)
    with pytest.raises(OSError, match="no space left"):
        save_student(student, target)
    assert json.loads((target / "student.json").read_text())["recipe"] == {"steps": 4}
    assert [path.name for path in target.parent.iterdir()] == ["student"]


def test_no_other_folder_is_replaced(student: Student, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("...")
    with pytest.raises(ValueError, match="is there and is no student's folder; choose another name"):
        save_student(student, tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.tex").exists()
    (tmp_path / "empty").mkdir()
    save_student(student, tmp_path / "empty")
    assert load_student(tmp_path / "empty").embed_dim == 24
