"""Retrieval by the captions that a dataset stores: as the text tower itself finds, for its own images and no others."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from reinforce.banks import resolve_banks, write_banks
from reinforce.config import BuildConfig, StudentModelConfig, TeacherConfig
from reinforce.demo import MODELS
from reinforce.deploy.export import export_onnx
from reinforce.deploy.model_file import ModelCard
from reinforce.deploy.student_labels import labels_for_student
from reinforce.evaluation import (
    RetrievalResult,
    RetrievalTask,
    ZeroShotResult,
    evaluate_models,
    load_embedding_model,
    render_table,
)
from reinforce.evaluation.banks import bank_for
from reinforce.image_tower import IMAGE_TOWER_CONFIG_NAME, STUDENT_NAME, WEIGHTS_NAME
from reinforce.shards.banks import read_bank
from reinforce.storage import open_store
from reinforce.student.models import build_student, load_student, save_student
from reinforce.teachers import load_teacher
from tests.banks import save_random_bank
from tests.fakes import fake_plan, fake_teachers, run
from tests.tars import image_bytes, write_tar
from tests.test_evaluate import refused, text_of, write_selection

CPU = torch.device("cpu")
DEMO = MODELS / "demo-a"
WORDS = ("red", "blue", "green", "circle", "square", "star", "boat", "house", "tree", "car", "small", "large")
SOURCE = {"captions": ["json.captions"], "max_captions": 3}
SHA256S = {"large": "0" * 64, "small": "0" * 64}
"""Of the fake teachers."""


def captions_of(index: int) -> list[str]:
    """None to three, all different."""
    return [f"a {WORDS[(index + n) % 12]} {WORDS[(5 * index + n) % 12]}" for n in range(index % 4)]


def write_captioned(folder: Path, *, first: int = 0) -> Path:
    """Two shards, one in a folder, of 8 labelled images with no, one, two or three captions."""
    for stem, start in (("a", first), ("sub/b", first + 8)):
        members = []
        for index in range(start, start + 8):
            members.append((f"{index - first:02d}.png", image_bytes(index)))
            members.append((f"{index - first:02d}.json", json.dumps({"captions": captions_of(index)}).encode()))
            members.append((f"{index - first:02d}.cls", str(index % 3).encode()))
        write_tar(folder / f"{stem}.tar", members)
    (folder / "classnames.txt").write_text("cat\ndog\nboat\n")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captioned shards, datasets of them by a trained teacher and by two fake ones, the trained one's image tower."""
    folder = tmp_path_factory.mktemp("texts")
    source = write_captioned(folder / "in")
    config = TeacherConfig.model_validate({"model": f"local-dir:{DEMO}", "mantissa_bits": 10})
    teacher = load_teacher("demo_a", config, device=CPU, batch_size=4)
    for name, teachers in (("demo", [teacher]), ("fake", fake_teachers())):
        plan = fake_plan({"source": SOURCE, "views": {"count": 0}}, teachers=teachers, captioners=[])
        assert not run(plan, source, folder / name).failed
    save_tower(folder / "tower")
    return folder


def save_tower(folder: Path) -> None:
    """The teacher without its text tower, as a student that learned everything from it would be."""
    folder.mkdir()
    config = json.loads((DEMO / "open_clip_config.json").read_text())
    config["model_cfg"] |= {"text_cfg": None}
    tensors = load_file(DEMO / "open_clip_model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if name.startswith(("visual.", "logit_scale"))}
    save_file(kept, folder / WEIGHTS_NAME)
    (folder / IMAGE_TOWER_CONFIG_NAME).write_text(json.dumps(config))
    sha256 = hashlib.sha256((DEMO / "open_clip_model.safetensors").read_bytes()).hexdigest()
    (folder / STUDENT_NAME).write_text(json.dumps({"teachers": {"demo_a": sha256}}))


def evaluated(model: Path, folder: Path, **options: Any) -> Any:
    options = {"task": "retrieval"} | options
    (result,) = evaluate_models([str(model)], str(folder / "in"), console=Console(quiet=True), device="cpu", **options)
    return result


def figures(result: RetrievalResult) -> tuple[Any, ...]:
    return result.num_images, result.num_captions, result.text_to_image, result.image_to_text, result.drops


@pytest.mark.parametrize("model", ["teacher", "tower"])
def test_stored_texts_find_what_the_text_tower_finds(folder: Path, model: str) -> None:
    own = evaluated(DEMO, folder, captions="json.captions")
    assert (own.num_images, own.num_captions, own.texts, own.drops) == (12, 24, None, {"no_caption": 4})
    assert 0 < own.text_to_image[1] < 1
    stored = evaluated(DEMO if model == "teacher" else folder / "tower", folder, texts=str(folder / "demo"))
    assert figures(stored) == figures(own)
    assert stored.texts == "demo_a"
    assert "captions as demo_a embedded them" in " ".join(text_of(render_table([stored])).split())


def test_a_bound_on_captions_and_a_selection(folder: Path, tmp_path: Path) -> None:
    select = write_selection(tmp_path / "s.parquet", [("sub/b", f"{key:02d}") for key in range(8, 15)])
    model = load_embedding_model(str(DEMO), CPU)
    uri = str(folder / "in")
    own = RetrievalTask(uri, captions="json.captions", max_captions=2, select=select).evaluate(model)
    stored = RetrievalTask(uri, texts=str(folder / "demo"), max_captions=2, select=select).evaluate(model)
    assert figures(stored) == figures(own)
    assert stored.counts == own.counts == {"captions_over_bound": 1}
    assert stored.drops == {"no_caption": 2, "not_selected": 1}


def test_shards_that_have_moved_are_found_by_their_names_and_others_are_refused(folder: Path, tmp_path: Path) -> None:
    texts = str(folder / "demo")

    def at(source: Path, uris: str = "") -> RetrievalResult:
        model = load_embedding_model(str(DEMO), CPU)
        return RetrievalTask(str(source / uris), texts=texts).evaluate(model)

    expected = figures(at(folder / "in"))
    assert figures(at(write_captioned(tmp_path / "moved"))) == expected
    # A folder of the source alone: its shard is still `sub/b`.
    assert at(folder / "in", "sub").num_images == 6
    other = write_captioned(tmp_path / "other", first=1)
    assert "sample 00 of shard a is another image there (sha256)" in refused(lambda: at(other))
    (other / "a.tar").rename(other / "z.tar")
    assert "has no embeddings/demo_a/text/original of shard z" in refused(lambda: at(other, "z.tar"))
    more = write_captioned(tmp_path / "more")
    write_tar(more / "a.tar", [("new.png", image_bytes(3)), ("00.png", image_bytes(0)), ("01.png", image_bytes(1))])
    assert at(more, "a.tar").drops == {"no_caption": 1, "not_in_texts": 1}


def test_texts_of_another_space_are_refused(folder: Path, tmp_path: Path) -> None:
    def command(model: Path, **options: Any) -> Callable[[], object]:
        return lambda: evaluated(model, folder, **options)

    fake, demo = str(folder / "fake"), str(folder / "demo")
    tower = folder / "tower"
    assert "by large, small" in refused(command(tower, texts=fake))
    assert "was not trained from such weights" in refused(command(tower, texts=fake))
    assert "it has other weights" in refused(command(DEMO, texts=fake))
    message = refused(command(tower, texts=demo, teacher="nobody"))
    assert "embedded by demo_a, not by nobody; name one of those with --teacher" in message
    plan = fake_plan({"source": {"captions": [], "max_captions": 0}, "views": {"count": 0}}, captioners=[])
    assert not run(plan, folder / "in", tmp_path / "wordless").failed
    for teacher in (None, "large"):
        message = refused(command(tower, texts=str(tmp_path / "wordless"), teacher=teacher))
        assert "holds no embeddings of the source's captions; give a dataset that was built with source.capt" in message
    assert "--texts DATASET has its teacher's texts" in refused(command(tower))
    assert "--captions: with --texts captions are those of" in refused(command(tower, texts=demo, captions="txt"))
    assert "--texts: only for --task retrieval" in refused(command(tower, texts=demo, task="zeroshot"))
    assert "--texts: with --modality ir.jpg images" in refused(command(tower, texts=demo, modality="ir.jpg"))
    assert "--teacher: goes with --texts" in refused(command(DEMO, teacher="demo_a"))
    assert "is scored by its own texts" in refused(command(DEMO, teacher="demo_a", task="zeroshot"))
    with pytest.raises(ValueError, match="not a reinforced dataset"):
        evaluated(tower, folder, texts=str(tmp_path))


@pytest.fixture(scope="module")
def two_heads(folder: Path) -> Path:
    """A student of both fake teachers, as it is before it has learned anything, and a bank of both."""
    config = StudentModelConfig.model_validate(
        {"backbone": "test_vit", "image_size": 32, "embed_dim": 20, "text": None}
    )
    student = build_student(config, seed=0)
    student.heads.update({"large": 12, "small": 8})
    save_student(student, folder / "student", extra={"teachers": SHA256S})
    built = {"banks": {"things": {"labels": ["cat", "dog", "boat"]}}, "teachers": {"large": {"model": "fake"}}}
    banks = resolve_banks(BuildConfig.model_validate(built))
    write_banks(open_store(str(folder / "fake")), banks, fake_teachers())
    return folder / "student"


@pytest.mark.parametrize(("teacher", "head"), [("large", slice(0, 12)), ("small", slice(12, 20))])
def test_each_teacher_has_its_head(folder: Path, two_heads: Path, teacher: str, head: slice) -> None:
    asked = None if teacher == "large" else teacher
    bank = str(folder / "fake/banks/things")
    result = evaluated(two_heads, folder, task="zeroshot", bank=bank, teacher=asked)
    assert isinstance(result, ZeroShotResult)
    model = load_embedding_model(str(two_heads), CPU)
    with model.evaluating():
        images = RetrievalTask(str(folder / "in"), captions="json.captions").images.embed(model)
    part = images.embeddings[:, head].numpy()
    cosines = part / np.linalg.norm(part, axis=1, keepdims=True) @ read_bank(bank, teacher).embeddings.T
    # The zero-shot images are all 16, those with captions come in the same order.
    labels = np.array([index % 3 for index in range(16)])
    has_caption = np.array([index % 4 > 0 for index in range(16)])
    right = (cosines.argmax(axis=1) == labels[has_caption]).sum()
    select = folder / f"{teacher}.parquet"
    pairs = [("a" if index < 8 else "sub/b", f"{index:02d}") for index in np.flatnonzero(has_caption)]
    narrowed = evaluated(
        two_heads, folder, task="zeroshot", bank=bank, teacher=asked, select=write_selection(select, pairs)
    )
    assert narrowed.top1 == pytest.approx(right / 12)
    texts = evaluated(two_heads, folder, texts=str(folder / "fake"), teacher=asked)
    assert (texts.texts, texts.num_images, texts.num_captions) == (teacher, 12, 24)


def test_a_bank_of_a_teacher_under_another_name_and_of_none(folder: Path, two_heads: Path, tmp_path: Path) -> None:
    renamed = save_random_bank(tmp_path, "renamed", ("cat", "dog", "boat"), dim=12)
    assert evaluated(two_heads, folder, task="zeroshot", bank=renamed).bank == "renamed"
    taken = Path(shutil.copytree(two_heads, tmp_path / "taken"))
    save_random_bank(taken, "things", ("cat", "dog", "boat"), dim=12, teacher="large")
    assert evaluated(taken, folder, task="zeroshot", teacher="large").bank == "things"
    message = refused(lambda: evaluated(taken, folder, task="zeroshot", teacher="small"))
    assert message.startswith(f"--teacher small: {taken}/banks/things, the bank that {taken}")
    assert message.endswith("has taken along, is of large; pass --bank DATASET/banks/NAME")
    wide = save_random_bank(tmp_path, "wide", ("cat", "dog", "boat"), dim=20)
    message = refused(lambda: evaluated(two_heads, folder, task="zeroshot", bank=wide))
    assert "its labels have 20 values, an image of" in message
    assert message.endswith("has 12")
    message = refused(lambda: export_onnx(two_heads, tmp_path / "s.onnx", bank=wide))
    assert "has 20 values a label, the student 12 an image" in message


def test_weights_choose_the_head_not_names(folder: Path, tmp_path: Path) -> None:
    """A bank of both teachers, of the same dim, that calls each by the other's name, and one of the second alone."""
    config = StudentModelConfig.model_validate(
        {"backbone": "test_vit", "image_size": 32, "embed_dim": 20, "text": None}
    )
    student = build_student(config, seed=0)
    student.heads.update({"x": 10, "y": 10})
    first, second = "a" * 64, "b" * 64
    save_student(student, tmp_path / "s", extra={"teachers": {"x": first, "y": second}})
    labels = ("cat", "dog", "boat")
    swapped = save_random_bank(tmp_path, "swapped", labels, 10, teacher="x", weights_sha256=second)
    save_random_bank(tmp_path, "swapped", labels, 10, teacher="y", weights_sha256=first)
    mixed = save_random_bank(tmp_path, "mixed", labels, 10, teacher="x", weights_sha256="c" * 64)
    save_random_bank(tmp_path, "mixed", labels, 10, teacher="z", weights_sha256=second)
    model = load_embedding_model(str(tmp_path / "s"), CPU)
    embeddings = torch.arange(20.0)[None]
    for uri, teacher in ((swapped, "x"), (mixed, "z")):
        found = labels_for_student(tmp_path / "s", load_student(tmp_path / "s"), uri)
        assert found is not None
        assert (found.labels.teacher, found.head) == (teacher, slice(10, 20))
        bank = bank_for(model, uri)
        assert bank is not None
        assert bank.teacher == teacher
        head = model.in_space_of(embeddings, bank.teacher, bank.weights_sha256)
        assert torch.equal(head, torch.nn.functional.normalize(embeddings[:, found.head], dim=-1))
    strange = save_random_bank(tmp_path, "strange", labels, 10, teacher="x", weights_sha256="c" * 64)
    save_random_bank(tmp_path, "strange", labels, 10, teacher="y", weights_sha256="d" * 64)
    message = refused(lambda: export_onnx(tmp_path / "s", tmp_path / "s.onnx", bank=strange))
    assert "its teachers x, y have other weights than the student's" in message


def test_export_gives_the_head_of_the_bank(folder: Path, two_heads: Path, tmp_path: Path) -> None:
    import onnxruntime

    report = export_onnx(two_heads, tmp_path / "s.onnx", bank=str(folder / "fake/banks/things"), num_images=4)
    session = onnxruntime.InferenceSession(tmp_path / "s.onnx")
    card = ModelCard.from_metadata(session.get_modelmeta().custom_metadata_map)
    assert (card.embed_dim, report.card.embed_dim, session.get_outputs()[0].shape[1]) == (12, 12, 12)
    assert card.labels is not None
    assert card.labels.teacher == "large"
    model = load_embedding_model(str(two_heads), CPU)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    with model.evaluating():
        expected = model.in_space_of(model.embed_images(pixels), "large", "0" * 64)
    scaled = (pixels.transpose(0, 3, 1, 2) / 255 - np.reshape(card.mean, (3, 1, 1))) / np.reshape(card.std, (3, 1, 1))
    (found,) = session.run(["embedding"], {"pixels": scaled.astype(np.float32)})
    assert np.allclose(found, expected.numpy(), atol=1e-4)
