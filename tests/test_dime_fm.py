"""Training from unpaired images and sentences, end to end: a run, two processes, a resumed one, several teachers."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from reinforce.banks import resolve_banks, write_banks
from reinforce.config import BuildConfig, ConfigError, LossConfig, Recipe, StudentModelConfig, load_recipe
from reinforce.evaluation import ZeroShotTask
from reinforce.image_tower import head_of, load_image_tower
from reinforce.shards.banks import read_bank
from reinforce.storage import open_store
from reinforce.student.batch import Batch
from reinforce.student.blueprint import draw_blueprint
from reinforce.student.checkpoint import CHECKPOINT_FILE, read_progress
from reinforce.student.dime_fm_loss import DimeFmLoss
from reinforce.student.examine import embedding_model
from reinforce.student.identity import identity
from reinforce.student.journal import read_metrics
from reinforce.student.learner import Learner, backward
from reinforce.student.models import build_student, load_student, save_student
from reinforce.student.train import train_student
from reinforce.weights import ModelError
from tests.corpora import random_corpus
from tests.fakes import fake_plan, fake_teachers, run
from tests.students import MODEL, plan_of, recipe, stopping_at
from tests.tars import image_bytes, write_tar

TEACHERS = {"large": 12, "small": 8}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images without a single caption, and two corpora."""
    folder = tmp_path_factory.mktemp("unpaired")
    for name, first in (("a", 0), ("b", 6)):
        members = [(f"{index:05d}.png", image_bytes(index)) for index in range(first, first + 6)]
        write_tar(folder / f"source/{name}.tar", members)
    plan = fake_plan({"source": {"max_captions": 0}}, captioners=[])
    assert not run(plan, folder / "source", folder / "reinforced").failed
    assert not list((folder / "reinforced/embeddings").rglob("text"))
    random_corpus(folder / "reinforced", "news", {"0": 9, "sub/1": 5}, TEACHERS)
    banks = {"banks": {"things": {"labels": ("cat", "boat", "sky")}}, "teachers": {"large": {"model": "fake"}}}
    write_banks(
        open_store(str(folder / "reinforced")), resolve_banks(BuildConfig.model_validate(banks)), fake_teachers()
    )
    random_corpus(folder / "reinforced", "web", {"0": 7}, TEACHERS, seed=1)
    return folder / "reinforced"


def dime_fm(teachers: tuple[str, ...] = ("small",), **changes: Any) -> Recipe:
    settings: dict[str, Any] = {
        "model": MODEL | {"text": None, "embed_dim": sum(TEACHERS[name] for name in teachers)},
        "data": {"workers": 0, "open_shards": 2, "teachers": teachers, "sentences": {"batch_size": 6, "open_files": 2}},
        "loss": {"kind": "dime_fm"},
    }
    for section, values in changes.items():
        settings[section] = settings.get(section, {}) | values if isinstance(values, dict) else values
    return recipe(**settings)


def train(dataset: Path, output: Path, recipe: Recipe, *, resume: bool = False) -> str:
    """What was said."""
    console = Console(file=io.StringIO(), width=200)
    train_student(str(dataset), output, recipe, resume=resume, console=console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def losses(output: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(output) if row["kind"] == "train"]


def weights(output: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = load_student(output / "student").model.state_dict()
    return state


def test_images_without_captions_and_sentences_without_images_train(dataset: Path, tmp_path: Path) -> None:
    said = train(dataset, tmp_path / "run", dime_fm(steps=30, data={"workers": 1}, loss={"cosine_weight": 0.1}))
    assert "sentences: 21 of news, web, without images, 6 a step\n" in said
    assert "captions none; stored signals of small\n" in said
    rows = read_metrics(tmp_path / "run")
    found = [row["loss"] for row in rows]
    assert sum(found[-5:]) < 0.8 * sum(found[:5])
    assert "udist" not in rows[0]
    assert all(
        row["loss"] == pytest.approx(0.7 * row["vl"] + 0.3 * row["pvl"] + 0.1 * row["cosine"], rel=1e-5) for row in rows
    )
    # What its teacher's is, which it does not learn.
    assert rows[-1]["logit_scale"] == rows[0]["logit_scale"] == pytest.approx(10.0)
    made = json.loads((tmp_path / "run/student/student.json").read_text())
    signals = {"embeddings/small/image", "corpora/news/embeddings/small", "corpora/web/embeddings/small"}
    assert made["signals"].keys() == signals
    assert "heads" not in made


def test_a_resumed_run_gives_the_same_student(dataset: Path, tmp_path: Path) -> None:
    settings = dime_fm(steps=8, checkpoint_every=3)
    train(dataset, tmp_path / "whole", settings)
    with stopping_at(5), pytest.raises(KeyboardInterrupt):
        train(dataset, tmp_path / "run", settings)
    (position,) = read_progress(tmp_path / "run" / CHECKPOINT_FILE).sentences
    assert position.group or position.row
    others = dime_fm(steps=8, checkpoint_every=3, data={"sentences": {"batch_size": 6, "corpora": ["web"]}})
    with pytest.raises(ConfigError, match=r"was another: it read other sentences \(student.data.sentences\); "):
        train(dataset, tmp_path / "run", others, resume=True)
    assert "going on from step 3" in train(dataset, tmp_path / "run", settings, resume=True)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    for name, tensor in weights(tmp_path / "run").items():
        assert torch.equal(tensor, weights(tmp_path / "whole")[name])


def test_checkpoints_of_before_there_were_sentences_go_on(dataset: Path) -> None:
    config = recipe(loss={"kind": "clip4retrofit", "bank_weight": 0}, model=MODEL | {"text": None}).student
    assert config is not None
    known = identity(config, plan_of(dataset, reads_captions=False), None, 1)
    assert known["loss"].keys() == {"kind", *LossConfig().model_dump().keys() - _NEW - _OF_OTHERS}
    assert "sentences" not in known["data"]
    assert "drop_path" not in known["model"]
    assert "sentences_sha256" not in known


_NEW = {f"{term}_{what}" for term in ("vl", "pvl", "udist") for what in ("weight", "temperature")}
_NEW |= {"similarity_scale", "cosine_weight", "gather"}
_OF_OTHERS = {"bank", "bank_scale", "margin", "num_negatives"}


def test_parts_have_the_gradient_of_the_whole() -> None:
    """The sentences are whole in every part."""
    generator = torch.Generator().manual_seed(0)
    batch = Batch(
        keys=["a"] * 8,
        stems=["a"] * 8,
        images=torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=generator),
        texts={},
        teacher_images={"small": torch.randn(8, 8, generator=generator).half()},
        teacher_texts={},
        sentences={"small": torch.randn(7, 8, generator=generator).half()},
    )
    assert all(torch.equal(part.sentences["small"], batch.sentences["small"]) for part in batch.split(4))
    config = LossConfig(kind="dime_fm", udist_weight=0.1, cosine_weight=0.1)
    model = StudentModelConfig.model_validate(MODEL | {"text": None, "embed_dim": 8})
    found = []
    for num_parts in (1, 4):
        learner = Learner(build_student(model, seed=0), config, {"small": 8})
        terms = backward(learner, DimeFmLoss(config, {"small": 8}, 8), batch, num_parts=num_parts)
        gradients = {name: parameter.grad for name, parameter in learner.named_parameters() if parameter.requires_grad}
        found.append(gradients | {"loss": terms["loss"].detach()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-5)


def test_a_head_for_each_of_several_teachers(dataset: Path, tmp_path: Path) -> None:
    labelled = [part for n in range(18) for part in ((f"{n}.png", image_bytes(n)), (f"{n}.cls", str(n % 3).encode()))]
    write_tar(tmp_path / "test/t.tar", labelled)
    (tmp_path / "test/classnames.txt").write_text("cat\nboat\nsky\n")
    evaluation = {"shards": [str(tmp_path / "test")], "bank": "things", "every_steps": 4, "choose": "best"}
    train(dataset, tmp_path / "run", dime_fm(("small", "large"), steps=4, evaluation=evaluation))
    folder = tmp_path / "run/student"
    made = json.loads((folder / "student.json").read_text())
    assert made["heads"] == TEACHERS
    assert made["bank"]["teacher"] == "large"
    student, tower = load_student(folder), load_image_tower(folder)
    assert student.heads == tower.heads == TEACHERS
    assert student.embed_dim == 20
    assert (head_of(student.heads, "large"), head_of(student.heads, "small")) == (slice(0, 12), slice(12, 20))
    with pytest.raises(ModelError, match="has no head of teacher other; it has large, small"):
        head_of(student.heads, "other")
    assert head_of({}, "other") == slice(None)
    # The evaluation while training is that of the head, among the labels as its teacher embeds them.
    whole = embedding_model(student, torch.device("cpu"))
    by_hand = replace(whole, encode_image=lambda pixels: student.model.encode_image(pixels)[:, :12])
    bank = read_bank(str(folder / "banks/things"), "large")
    result = ZeroShotTask([str(tmp_path / "test")]).evaluate(by_hand, bank)
    (row,) = [row for row in read_metrics(tmp_path / "run") if row["kind"] == "evaluation"]
    assert (row["top1"], row["auroc"]) == (result.top1, result.auroc)


def test_without_l_vl_no_sentence_is_read(dataset: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(dataset, bare, ignore=shutil.ignore_patterns("corpora"))
    train(bare, tmp_path / "run", dime_fm(steps=2, loss={"vl_weight": 0.0}, data={"sentences": None}))
    assert read_metrics(tmp_path / "run")[0].keys() >= {"pvl"}
    with pytest.raises(ConfigError, match=r"has no corpus, and loss.kind dime_fm reads sentences"):
        train(bare, tmp_path / "other", dime_fm(steps=2))
    without = ["student.loss.vl_weight=0"]
    with pytest.raises(ConfigError, match=r"data.sentences: with loss.vl_weight 0 none is read; leave it out \(--set "):
        load_recipe("demo_dime_fm", without)
    narrowed = load_recipe("demo_dime_fm", [*without, "student.data.sentences=null"])
    assert narrowed.student is not None
    # Also once it is written out whole, defaults and all.
    assert Recipe.model_validate(narrowed.model_dump(mode="json")) == narrowed


def test_the_image_tower_of_an_architecture_alone(tmp_path: Path) -> None:
    model = {"architecture": "ViT-S-32-alt", "text": None, "embed_dim": 24, "image_size": 64}
    student = build_student(StudentModelConfig.model_validate(model), seed=0)
    assert student.embed_dim == 24
    assert not student.has_text
    save_student(student, tmp_path / "student")
    pixels = torch.rand(2, 3, 64, 64)
    student.model.eval()
    with torch.no_grad():
        expected = student.model.encode_image(pixels)
        assert expected.shape == (2, 24)
        for opened in (load_student(tmp_path / "student").model, load_image_tower(tmp_path / "student").model):
            assert torch.equal(opened.encode_image(pixels), expected)
    # Its folder is a checkpoint to start from; weights of the architecture are not, nor is another architecture's.
    again = StudentModelConfig.model_validate(model | {"checkpoint": str(tmp_path / "student")})
    with torch.no_grad():
        assert torch.equal(build_student(again, seed=1).model.eval().encode_image(pixels), expected)
    for changes, match in (
        ({"checkpoint": "openai"}, "checkpoint: openai: the image tower of an architecture alone starts from scratch"),
        (
            {"checkpoint": str(tmp_path / "student"), "architecture": "ViT-M-32-alt"},
            "student.model.architecture: width",
        ),
    ):
        with pytest.raises(ConfigError, match=match):
            build_student(StudentModelConfig.model_validate(model | changes), seed=0)

    # The activation is that of the architecture.
    path = tmp_path / "student/image_tower_config.json"
    path.write_text(path.read_text().replace('"quick_gelu": false', '"quick_gelu": true'))
    with torch.no_grad():
        quick = load_student(tmp_path / "student").model.encode_image(pixels)
        assert torch.equal(load_image_tower(tmp_path / "student").model.encode_image(pixels), quick)
    assert not torch.allclose(quick, expected, rtol=1e-4)


def test_an_architecture_keeps_its_activation_and_gets_a_projection() -> None:
    quick = draw_blueprint(StudentModelConfig(architecture="ViT-B-32-quickgelu", text=None, embed_dim=24)).config
    assert quick["model_cfg"]["quick_gelu"]
    siglip = draw_blueprint(StudentModelConfig(architecture="ViT-B-16-SigLIP", text=None, embed_dim=24)).config
    assert siglip["model_cfg"]["vision_cfg"]["timm_proj"] == "linear"
    assert siglip["model_cfg"]["text_cfg"] is None


def test_fields_of_an_architecture_s_image_tower() -> None:
    config = StudentModelConfig(architecture="RN50", text=None, embed_dim=24)
    assert StudentModelConfig.model_validate(config.model_dump()) == config
    with pytest.raises(ValueError, match="projection belongs to a backbone"):
        StudentModelConfig(architecture="RN50", text=None, projection="mlp")
    with pytest.raises(ValueError, match="embed_dim belongs to a backbone"):
        StudentModelConfig(architecture="RN50", embed_dim=24)
