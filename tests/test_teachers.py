"""Teachers of every family from checkpoints on disk, against the libraries' own forward passes."""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch._dynamo.utils import counters
from transformers import AutoModel, AutoProcessor

import reinforce
from reinforce.config import BuildConfig, TeacherConfig
from reinforce.plan import BuildPlan, load_plan
from reinforce.teachers import ClipTeacher, load_teacher
from reinforce.teachers.loading import ClipModel
from reinforce.teachers.texts import TextTokenizer
from reinforce.weights import ModelError, check_sha256, resolve_device
from tests import models
from tests.fakes import run
from tests.tars import image_bytes, pairs, write_tar

CPU = torch.device("cpu")
LONG = "a photo of the red cat , a photo of the red dog , a photo of the red boat"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        "clip": {"model": models.save_open_clip(folder / "clip")},
        "siglip_like": {"model": models.save_siglip_like(folder / "siglip_like")},
        "coca": {"model": models.save_coca(folder / "coca")},
        "resnet": {"model": models.save_resnet(folder / "resnet")},
        "hf_clip": {"kind": "transformers", "model": models.save_transformers_clip(folder / "hf_clip")},
        "hf_siglip": {"kind": "transformers", "model": models.save_transformers_siglip(folder / "hf_siglip")},
    }


def load(checkpoints: dict[str, dict[str, str]], name: str, **config: Any) -> ClipTeacher:
    teacher = load_teacher(name, TeacherConfig(**checkpoints[name], **config), device=CPU, batch_size=4)
    assert isinstance(teacher, ClipTeacher)
    return teacher


def own_image_embeddings(checkpoint: dict[str, str], images: Sequence[Image.Image]) -> np.ndarray:
    """What the library itself says of images, by its own evaluation preprocessing."""
    with torch.inference_mode():
        if checkpoint.get("kind") == "transformers":
            model = AutoModel.from_pretrained(checkpoint["model"]).eval()
            inputs = AutoProcessor.from_pretrained(checkpoint["model"])(images=images, return_tensors="pt")
            features = model.get_image_features(**inputs).pooler_output
        else:
            model, _, preprocess = open_clip.create_model_and_transforms(checkpoint["model"])
            features = model.eval().encode_image(torch.stack([preprocess(image) for image in images]))
    return torch.nn.functional.normalize(features, dim=-1).numpy()


def test_an_ensemble_of_every_family_in_one_build(tmp_path: Path, checkpoints: dict[str, dict[str, str]]) -> None:
    """Sizes, normalisations, tokenizers, context lengths and dims all differ; view 0 is each library's own."""
    members = []
    for index, (width, height) in enumerate([(64, 64), (100, 100), (33, 33), (48, 48), (200, 200), (90, 60), (40, 70)]):
        members += [(f"{index}.png", image_bytes(index, width, height)), (f"{index}.txt", b"a photo of the cat")]
    write_tar(tmp_path / "in" / "s.tar", members)
    config = {"batch_size": 3, "views": {"count": 1}, "teachers": checkpoints}
    plan = load_plan(BuildConfig.model_validate(config))
    assert run(plan, tmp_path / "in", tmp_path / "out").failed == {}
    dataset = reinforce.open_dataset(str(tmp_path / "out"))
    images = [Image.open(io.BytesIO(data)) for name, data in members if name.endswith("png")]
    for name, checkpoint in checkpoints.items():
        stored = dataset.numpy(f"embeddings/{name}/image", "s", "view_000").astype(np.float32)
        stored /= np.linalg.norm(stored, axis=1, keepdims=True)
        cosine = (stored * own_image_embeddings(checkpoint, images)).sum(axis=1)
        # SigLIP's own preprocessing squashes; the clean view is a centre crop, so only square images compare.
        num_comparable = 5 if "siglip" in name else 7
        assert (cosine[:num_comparable] > 0.999).all(), (name, cosine)
    shapes = {name: dataset.numpy(f"embeddings/{name}/text/original", "s", "caption_000").shape for name in checkpoints}
    dims = {"clip": 24, "siglip_like": 20, "coca": 16, "resnet": 32, "hf_clip": 12, "hf_siglip": 16}
    assert shapes == {name: (7, dim) for name, dim in dims.items()}


@pytest.mark.parametrize(("name", "length"), [("clip", 8), ("resnet", 8), ("siglip_like", 16), ("coca", 12)])
def test_open_clip_texts(checkpoints: dict[str, dict[str, str]], name: str, length: int) -> None:
    """Short texts in short passes, where the tower allows it, give what the library says of the whole context."""
    texts = [" ".join(["cat"] * count) for count in range(9)] + ["a photo of a dog", LONG, "two"]
    teacher = load(checkpoints, name)
    embeddings, truncated = teacher.embed_texts(texts)
    model = open_clip.create_model(checkpoints[name]["model"]).eval()
    tokens = open_clip.get_tokenizer(checkpoints[name]["model"])(texts)
    with torch.inference_mode():
        expected = model.encode_text(tokens, normalize=True).numpy()
    np.testing.assert_allclose(embeddings, expected, atol=1e-6)
    assert np.flatnonzero(truncated).tolist() == [10]
    context = teacher.describe()["context_length"]
    assert [text.length for text in teacher.tokenize(texts)] == [length] * 7 + [context] * 2 + [length, context, length]


@pytest.mark.parametrize(("name", "length"), [("hf_clip", 8), ("hf_siglip", 16)])
def test_transformers_texts(checkpoints: dict[str, dict[str, str]], name: str, length: int) -> None:
    texts = ["a photo of a cat", LONG, "two"]
    teacher = load(checkpoints, name)
    embeddings, truncated = teacher.embed_texts(texts)
    model = AutoModel.from_pretrained(checkpoints[name]["model"]).eval()
    tokenizer = AutoProcessor.from_pretrained(checkpoints[name]["model"]).tokenizer
    inputs = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    with torch.inference_mode():
        features = model.get_text_features(input_ids=inputs["input_ids"]).pooler_output
    np.testing.assert_allclose(embeddings, torch.nn.functional.normalize(features, dim=-1).numpy(), atol=1e-6)
    assert truncated.tolist() == [False, True, False]
    context = teacher.describe()["context_length"]
    assert [text.length for text in teacher.tokenize(texts)] == [length, context, length]


def with_class_token(texts: list[str], length: int) -> torch.Tensor:
    """As open_clip's CLIPS tokenizers: begin, words, end, padding, and a class token in the last position."""
    rows = [[2, *([7] * len(text.split()))[: length - 3], 3] for text in texts]
    return torch.tensor([row + [0] * (length - 1 - len(row)) + [9] for row in rows])


def without_end_token(texts: list[str], length: int) -> torch.Tensor:
    rows = [[ord(word[0]) for word in text.split()][:length] for text in texts]
    return torch.tensor([row + [0] * (length - len(row)) for row in rows])


@pytest.mark.parametrize(
    ("tokenizer", "num_special", "num_read"),
    [("<pad>", 2, 2), ("<eos>", 2, 2), (with_class_token, 3, 24), (without_end_token, 0, 1)],
    ids=["own_padding", "end_token_is_padding", "class_token", "no_end_token"],
)
def test_texts_are_tokenised_once_and_as_the_whole_context_says(
    tokenizer: Any, num_special: int, num_read: int
) -> None:
    """`num_read` positions beside the words are needed at least: the end-of-text token is among them."""
    words = models.word_tokenizer(24, tokenizer) if isinstance(tokenizer, str) else None
    num_tokenised = 0

    def tokenize(texts: list[str], length: int) -> torch.Tensor:
        nonlocal num_tokenised
        num_tokenised += len(texts)
        if words is None:
            return torch.as_tensor(tokenizer(texts, length))
        tokens = words(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        return torch.as_tensor(tokens["input_ids"])

    texts = [" ".join(["cat"] * count) for count in range(30)]
    of_model = TextTokenizer(tokenize, 24)
    num_tokenised = 0
    found = of_model.tokenize(texts, bucketed=True)
    assert num_tokenised <= 30 + sum(num_words + num_special >= 23 for num_words in range(30))
    assert np.array_equal(np.stack([text.ids for text in found]), tokenize(texts, 24).numpy())
    assert [text.is_cut for text in found] == [num_words + num_special > 24 for num_words in range(30)]
    lengths = [min(24, -(-(num_words + num_read) // 8) * 8) for num_words in range(30)]
    assert [text.length for text in found] == lengths
    assert [text.length for text in of_model.tokenize(texts, bucketed=False)] == [24] * 30


@pytest.mark.parametrize("name", ["clip", "hf_siglip"])
def test_truncation_is_counted_at_the_very_edge(checkpoints: dict[str, dict[str, str]], name: str) -> None:
    teacher = load(checkpoints, name)
    room = teacher.describe()["context_length"] - 2
    texts = [" ".join(["cat"] * count) for count in (room - 1, room, room + 1, room + 2)]
    assert teacher.embed_texts(texts)[1].tolist() == [False, False, True, True]


def test_neighbours_do_not_touch_a_row(checkpoints: dict[str, dict[str, str]]) -> None:
    teacher = load(checkpoints, "clip")
    views = np.random.default_rng(0).integers(0, 255, (9, 32, 32, 3), dtype=np.uint8)
    alone = np.concatenate([teacher.embed_images(views[i : i + 1]) for i in range(9)])
    np.testing.assert_allclose(teacher.embed_images(views), alone, atol=2e-6)
    texts = [f"{i} {LONG}"[: 5 + i] for i in range(9)]
    alone = np.concatenate([teacher.embed_texts([text])[0] for text in texts])
    np.testing.assert_allclose(teacher.embed_texts(texts)[0], alone, atol=2e-6)


def test_neighbours_of_bad_samples_are_unchanged_in_a_build(
    tmp_path: Path, checkpoints: dict[str, dict[str, str]]
) -> None:
    config = BuildConfig(batch_size=4, teachers={"clip": TeacherConfig(**checkpoints["clip"], mantissa_bits=10)})
    members = dict(pairs(10))
    write_tar(tmp_path / "good" / "s.tar", list(members.items()))
    members |= {"00004.png": image_bytes(0)[:-80], "00006.txt": b"\xff"}
    write_tar(tmp_path / "bad" / "s.tar", list(members.items()))
    tables = {}
    for name in ("good", "bad"):
        run(load_plan(config), tmp_path / name, tmp_path / f"{name}_out")
        dataset = reinforce.open_dataset(str(tmp_path / f"{name}_out"))
        columns = [("embeddings/clip/image", "view_003"), ("embeddings/clip/text/original", "caption_000")]
        tables[name] = [dataset.numpy(signal, "s", column).astype(np.float32) for signal, column in columns]
    rows = [0, 1, 2, 3, 5, 6, 7, 8, 9]
    np.testing.assert_allclose(tables["bad"][0], tables["good"][0][rows], atol=1e-3)
    assert np.isnan(tables["bad"][1][5]).all()
    is_there = [i for i in range(9) if i != 5]
    np.testing.assert_allclose(tables["bad"][1][is_there], tables["good"][1][rows][is_there], atol=1e-3)


def overflowing_clip(weight: float) -> ClipModel:
    """Multiplies what half precision cannot hold; a zero image gives nothing at all."""
    matrix = torch.full((3, 4), weight)
    return ClipModel(
        module=torch.nn.Identity(),
        encode_image=lambda pixels: pixels.mean(dim=(2, 3)) @ matrix,
        encode_text=lambda ids: torch.ones(len(ids), 4),
        tokenize=lambda texts, length: torch.zeros(len(texts), length, dtype=torch.long),
        image_size=8,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        context_length=4,
        logit_scale=1.0,
        logit_bias=None,
        weights_sha256="0" * 64,
    )


def test_what_overflows_is_retried_in_fp32_and_else_null(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reinforce.teachers.clip.autocast_dtype", lambda precision, device: torch.float16)
    views = np.full((3, 8, 8, 3), 255, np.uint8)
    views[1] = 0
    config = TeacherConfig(model="x", precision="fp16")
    retried = ClipTeacher("t", config, overflowing_clip(1e5), device=CPU, batch_size=4).embed_images(views)
    np.testing.assert_allclose(retried[[0, 2]], 0.5, rtol=1e-6)
    assert np.isnan(retried[1]).all()
    given_up = ClipTeacher("t", config, overflowing_clip(3e38), device=CPU, batch_size=4).embed_images(views)
    assert np.isnan(given_up).all()


def test_what_bf16_cannot_hold_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reinforce.teachers.clip.autocast_dtype", lambda precision, device: torch.bfloat16)
    num_passes = 0

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        nonlocal num_passes
        num_passes += 1
        return torch.zeros(len(pixels), 4)

    clip = replace(overflowing_clip(1.0), encode_image=encode)
    teacher = ClipTeacher("t", TeacherConfig(model="x", precision="bf16"), clip, device=CPU, batch_size=4)
    assert np.isnan(teacher.embed_images(np.zeros((3, 8, 8, 3), np.uint8))).all()
    assert num_passes == 1


@pytest.mark.parametrize("name", ["clip", "siglip_like", "coca", "resnet", "hf_clip", "hf_siglip"])
def test_weights_in_bf16_say_the_same_as_autocast_of_fp32(
    monkeypatch: pytest.MonkeyPatch, checkpoints: dict[str, dict[str, str]], name: str
) -> None:
    monkeypatch.setattr("reinforce.teachers.clip.autocast_dtype", lambda precision, device: torch.bfloat16)
    ours = load(checkpoints, name, precision="bf16")
    monkeypatch.setattr("reinforce.teachers.clip.cast_weights", lambda module, dtype: None)
    autocast = load(checkpoints, name, precision="bf16")
    views = np.random.default_rng(0).integers(0, 255, (4, ours.image_size, ours.image_size, 3), dtype=np.uint8)
    texts = ["a photo of a cat", "", LONG]
    # Autocast on cuda keeps attention off a path of its own that takes weights as they are; autocast on a CPU does not.
    monkeypatch.setattr(torch.backends.mha, "_is_fastpath_enabled", False)
    assert np.array_equal(ours.embed_images(views), autocast.embed_images(views))
    assert np.array_equal(ours.embed_texts(texts)[0], autocast.embed_texts(texts)[0])
    types = {type(part): part.weight.dtype for part in ours._clip.module.modules() if hasattr(part, "weight")}
    assert {types[kind] for kind in (torch.nn.Linear, torch.nn.Conv2d)} == {torch.bfloat16}
    assert {dtype for kind, dtype in types.items() if issubclass(kind, torch.nn.LayerNorm)} == {torch.float32}


def test_compiled_when_loaded_and_counted_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoints: dict[str, dict[str, str]]
) -> None:
    """All but the last stage of the compiler, which takes a minute here: what it is given, and when."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    write_tar(tmp_path / "in" / "s.tar", pairs(6))
    stored, num_graphs = [], []
    for compiled in (False, True):
        teachers = {"t": TeacherConfig(**checkpoints["clip"], mantissa_bits=10)}
        plan = load_plan(BuildConfig(batch_size=4, compile=compiled, teachers=teachers))
        num_graphs.append(counters["stats"]["unique_graphs"])
        output = tmp_path / f"out{compiled}"
        run(plan, tmp_path / "in", output)
        stored.append(reinforce.open_dataset(str(output)).numpy("embeddings/t/image", "s", "view_003"))
        events = [json.loads(line) for part in output.glob("runs/*/*.jsonl") for line in part.read_text().splitlines()]
        assert events[-2]["stage_seconds"]["start"] == round(plan.load_s, 3) > 0
    assert num_graphs[1] == num_graphs[0] + 1 == counters["stats"]["unique_graphs"], "nothing is compiled in the build"
    np.testing.assert_allclose(stored[0].astype(np.float32), stored[1], atol=1e-3)


def test_no_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("No working C++ compiler found\nin config")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    clip = overflowing_clip(1.0)
    with pytest.raises(ModelError, match=r"^not compiled \(No working C\+\+ compiler found in config\); set build"):
        ClipTeacher("t", TeacherConfig(model="x"), clip, device=CPU, batch_size=4, compiled=True)


def test_signal_json_says_what_a_student_needs(checkpoints: dict[str, dict[str, str]]) -> None:
    described = load(checkpoints, "siglip_like").describe()
    assert (described["dim"], described["image_size"], described["logit_bias"]) == (20, 48, -10.0)
    assert described["logit_scale"] == pytest.approx(1 / 0.07)
    assert load(checkpoints, "clip", logit_scale=60.0).describe()["logit_scale"] == 60.0
    assert load(checkpoints, "siglip_like").image_content()["mean"] == [0.5, 0.5, 0.5]


def test_content_names_no_place(checkpoints: dict[str, dict[str, str]]) -> None:
    for name in checkpoints:
        teacher = load(checkpoints, name)
        content = repr(teacher.image_content() | teacher.text_content())
        assert checkpoints[name]["model"].removeprefix("local-dir:") not in content
        assert teacher.describe()["weights_sha256"] in content


def test_the_same_weights_elsewhere_are_the_same_teacher(tmp_path: Path) -> None:
    one = {"x": {"model": models.save_open_clip(tmp_path / "one", seed=5)}}
    two = {"x": {"model": models.save_open_clip(tmp_path / "two", seed=5)}}
    other = {"x": {"model": models.save_open_clip(tmp_path / "other", seed=6)}}
    contents = [load(checkpoints, "x").image_content() for checkpoints in (one, two, other)]
    assert contents[0] == contents[1] != contents[2]


def test_a_checkpoint_by_path_and_by_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    models.save_open_clip(tmp_path / "RN-tiny")
    config = (tmp_path / "RN-tiny" / "open_clip_config.json").read_text()
    (tmp_path / "configs").mkdir()
    architecture = config[config.index('"model_cfg": ') + 13 : config.index(', "preprocess_cfg"')]
    (tmp_path / "configs" / "RN-tiny.json").write_text(architecture)
    open_clip.add_model_config(tmp_path / "configs")
    weights = tmp_path / "RN-tiny" / "open_clip_model.safetensors"
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    contents = []
    for checkpoint in (str(weights), f"file://{weights}"):
        teacher = TeacherConfig(model="RN-tiny", checkpoint=checkpoint, sha256=sha256)
        contents.append(load_teacher("t", teacher, device=CPU, batch_size=4).image_content())
    assert contents[0] == contents[1]
    assert len(list((tmp_path / "cache" / "reinforce" / "weights").glob("*.safetensors"))) == 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model": "local-dir:/no/such/folder"}, "no open_clip_config.json in that folder"),
        ({"model": "NoSuchModel:openai"}, "open_clip has no architecture 'NoSuchModel'"),
        ({"model": "ViT-B-32:no_such_tag"}, "no such pretrained tag (known: openai"),
        ({"model": "ViT-B-32", "checkpoint": "/no/such.pt"}, "checkpoint /no/such.pt: no such file"),
        ({"kind": "transformers", "model": "/no/such/folder"}, "no such folder"),
    ],
)
def test_missing_models_are_one_line(config: dict[str, str], message: str) -> None:
    with pytest.raises(ModelError) as raised:
        load_teacher("t", TeacherConfig(**config), device=CPU, batch_size=4)
    assert str(raised.value).startswith("build.teachers.t: ")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_folder_without_weights_is_refused_not_random(tmp_path: Path) -> None:
    model = models.save_open_clip(tmp_path / "m")
    (tmp_path / "m" / "open_clip_model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights in that folder"):
        load_teacher("t", TeacherConfig(model=model), device=CPU, batch_size=4)


def test_other_weights_than_the_recipe_says_are_refused(checkpoints: dict[str, dict[str, str]]) -> None:
    with pytest.raises(ModelError, match=r"build\.teachers\.clip: weights .* sha256 is .*, expected 0000"):
        load(checkpoints, "clip", sha256="0" * 64)


def test_weights_in_several_files_have_one_sha256(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode())
    digests = [hashlib.sha256(name.encode()).hexdigest() for name in ("a", "b")]
    assert check_sha256([tmp_path / "a"], None) == digests[0]
    assert check_sha256([tmp_path / "a", tmp_path / "b"], None) == hashlib.sha256("".join(digests).encode()).hexdigest()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what is refused here")
def test_what_the_device_lacks_is_refused_not_substituted(checkpoints: dict[str, dict[str, str]]) -> None:
    with pytest.raises(ModelError, match="precision bf16 is not available on cpu; set precision to fp32"):
        load(checkpoints, "clip", precision="bf16")
    with pytest.raises(ModelError, match=r"build\.device: cuda:3 is not on this machine"):
        resolve_device("cuda:3")
    assert resolve_device("auto").type == "cpu"


def test_a_plan_needs_a_model() -> None:
    with pytest.raises(ValueError, match="a build needs at least one teacher or captioner"):
        BuildPlan(BuildConfig(), [], [])
