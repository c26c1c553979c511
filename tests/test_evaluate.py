"""Figures against hand-made ones and open_clip's own; what is not used is counted; a model is left as it was."""

import dataclasses
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor
from torch.nn.functional import normalize

from reinforce.config import ConfigError, SourceConfig
from reinforce.decode import decode
from reinforce.demo import MODELS
from reinforce.demo.shards import write_scenes
from reinforce.evaluation import images, metrics
from reinforce.evaluation.model import EmbeddingModel, load_embedding_model
from reinforce.evaluation.results import ZeroShotResult, render_class_table, render_table
from reinforce.evaluation.retrieval import RetrievalTask
from reinforce.evaluation.run import evaluate_models
from reinforce.evaluation.zeroshot import ZeroShotTask, embed_classes
from reinforce.shards.source import SourceShard
from reinforce.weights import ModelError
from tests.models import save_open_clip, save_siglip_like
from tests.s3_server import S3Server, use_test_credentials
from tests.tars import Members, encode, image_bytes, write_tar

CPU = torch.device("cpu")
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "grey": (128, 128, 128)}


class Painter(torch.nn.Module):
    """A model exact by construction: an image is its mean colour, a text the sum of the colours it names."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(3))
        self.frozen = torch.nn.Linear(1, 1).eval()
        self.seen: list[Tensor] = []

    def encode_image(self, pixels: Tensor) -> Tensor:
        assert not self.training
        self.seen.append(pixels)
        return pixels.mean(dim=(2, 3)) * self.scale

    def encode_text(self, tokens: Tensor) -> Tensor:
        colours = torch.tensor(list(COLOURS.values())).float()
        return (tokens[:, :, None] * colours).sum(dim=1) * self.scale


def tokenize(texts: list[str]) -> Tensor:
    return torch.tensor([[float(name in text) for name in COLOURS] for text in texts])


def painter(module: Painter | None = None, size: int = 8) -> EmbeddingModel:
    module = module or Painter()
    mean, std = (0.0,) * 3, (1.0,) * 3
    return EmbeddingModel(
        "painter", module, module.encode_image, module.encode_text, tokenize, size, mean, std, torch.device("cpu")
    )


def colour_bytes(name: str) -> bytes:
    return encode(Image.new("RGB", (12, 9), COLOURS[name]))


def write_colours(folder: Path, labels: Sequence[tuple[str, str]], names: Sequence[str] = tuple(COLOURS)) -> str:
    """One shard of plain images with labels, `(colour, label)`, and the class names above its folder."""
    members = [
        member
        for index, (colour, label) in enumerate(labels)
        for member in ((f"{index}.png", colour_bytes(colour)), (f"{index}.cls", label.encode()))
    ]
    write_tar(folder / "test" / "a.tar", members)
    (folder / "classnames.txt").write_text("\n".join(names))
    return str(folder / "test")


def write_selection(path: Path, pairs: Sequence[tuple[str, str]]) -> str:
    stems, keys = (pa.array([pair[i] for pair in pairs], pa.string()) for i in (0, 1))
    pq.write_table(pa.table({"stem": stems, "key": keys}), path)
    return str(path)


def refused(make: Callable[[], object]) -> str:
    with pytest.raises((ConfigError, ModelError)) as raised:
        make()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_auroc_is_the_chance_that_a_positive_stands_above_a_negative() -> None:
    generator = np.random.default_rng(0)
    for levels in (2, 5, 1000):
        scores, positive = generator.integers(0, levels, 60).astype(np.float32), generator.random(60) < 0.3
        pairs = scores[positive][:, None] - scores[~positive]
        assert metrics.auroc(scores, positive) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())
    assert metrics.auroc(np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False])) == 0.875
    for positive in (np.zeros(3, bool), np.ones(3, bool)):
        assert metrics.auroc(np.arange(3.0), positive) is None


def test_among_equal_classes_the_first_wins_and_nan_is_never_right() -> None:
    classes = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    rows = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [float("nan"), 0.0]])
    assert metrics.label_ranks(rows, classes, np.array([0, 1, 2, 0])).tolist() == [2, 0, 1, metrics.NEVER]
    classes[0] = float("nan")
    assert metrics.label_ranks(rows[:2], classes, np.array([0, 1])).tolist() == [metrics.NEVER, 1]


def test_ranks_in_retrieval_by_hand() -> None:
    pictures = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6], [0.6, 0.8]])
    owners = np.array([0, 0, 1, 2])
    # Text 1 is of image 0, whose cosine is 0; text 2 is of image 1: both others are nearer.
    assert metrics.image_ranks(texts, pictures, owners).tolist() == [0, 2, 2, 0]
    # Image 1's only text is its third nearest; the other two images have a text that is themselves.
    assert metrics.text_ranks(pictures, texts, owners).tolist() == [0, 2, 0]


def test_equal_scores_in_retrieval_count_against_the_model() -> None:
    same = normalize(torch.ones(4, 3), dim=1)
    assert metrics.image_ranks(same, same[:3], np.array([0, 0, 1, 2])).tolist() == [2, 2, 2, 2]
    assert metrics.text_ranks(same[:3], same, np.array([0, 0, 1, 2])).tolist() == [2, 3, 3]
    broken = same * float("nan")
    assert (metrics.image_ranks(broken, same, np.arange(4)) == metrics.NEVER).all()
    assert (metrics.text_ranks(same, broken, np.arange(4)) == metrics.NEVER).all()


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    pictures, texts = (normalize(torch.randn(n, 6, generator=generator), dim=1) for n in (23, 51))
    owners = np.sort(np.concatenate([np.arange(23), np.random.default_rng(0).integers(0, 23, 28)]))
    labels = owners[:23]

    def figures() -> list[Any]:
        ranks = (metrics.image_ranks(texts, pictures, owners), metrics.text_ranks(pictures, texts, owners))
        aurocs = metrics.class_aurocs(pictures, texts, labels)
        return [*map(list, ranks), list(metrics.label_ranks(pictures, texts, labels)), aurocs]

    whole = figures()
    monkeypatch.setattr(metrics, "BLOCK_VALUES", 100)
    assert figures() == whole


def photographs(tmp_path: Path) -> list[bytes]:
    """Photographs of many sizes if they are beside the checkout, else scenes of many sizes."""
    shard = Path(__file__).parents[2] / "shared" / "data" / "coco_mini" / "00000.tar"
    if not shard.is_file():
        shard = write_scenes(tmp_path / "scenes", num_images=24)[0]
    return [sample.image for sample in SourceShard(shard, SourceConfig()).samples()][:24]


@pytest.mark.parametrize("name", ["demo-a", "demo-b", "squash"])
@torch.inference_mode()
def test_preprocessing_is_open_clips_own(tmp_path: Path, name: str) -> None:
    model_name = save_siglip_like(tmp_path / name) if name == "squash" else f"local-dir:{MODELS / name}"
    ours = load_embedding_model(model_name, CPU)
    assert ours.squashes == (name == "squash")
    theirs, _, transform = open_clip.create_model_and_transforms(model_name)
    found = photographs(tmp_path)
    members = [
        (f"{index}.{suffix}", data) for index, jpg in enumerate(found) for suffix, data in (("jpg", jpg), ("cls", b"0"))
    ]
    write_tar(tmp_path / "a.tar", members)
    shards = images.ShardImages(str(tmp_path / "a.tar"), needs="label")
    embedded = shards.embed(ours, batch_size=7)
    expected = [
        theirs.eval().encode_image(transform(Image.open(io.BytesIO(jpg)).convert("RGB"))[None]) for jpg in found
    ]
    cosines = (embedded.embeddings * normalize(torch.cat(expected), dim=1)).sum(dim=1)
    assert len(cosines) == 24
    assert cosines.min() > 0.9999


def test_another_interpolation_is_noted_and_what_would_be_wrong_refused(tmp_path: Path) -> None:
    loaded = load_embedding_model(save_open_clip(tmp_path / "a", preprocess={"interpolation": "bilinear"}), CPU)
    assert loaded.notes[0].endswith("resized bicubic, its own preprocessing is bilinear")
    assert loaded.num_parameters == sum(p.numel() for p in loaded.module.parameters())
    longest = save_open_clip(tmp_path / "b", preprocess={"resize_mode": "longest"})
    assert "resize_mode 'longest' is not supported" in refused(lambda: load_embedding_model(longest, CPU))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, num_images=480, images_per_shard=200, seed=11)
    return str(folder)


@pytest.fixture(scope="module")
def demo_a() -> EmbeddingModel:
    return load_embedding_model(str(MODELS / "demo-a"), CPU)


def test_a_trained_model_on_scenes_is_as_good_as_open_clip_says(scenes: str, demo_a: EmbeddingModel) -> None:
    task = ZeroShotTask(scenes, templates="simple")
    result = task.evaluate(demo_a)
    assert result.top1 > 0.8
    assert (result.num_templates, result.num_non_finite) == (7, 0)
    assert result.drops == {"corrupt_image": 1, "empty_image": 1, "not_an_image": 1}
    assert result.num_samples == 477 == sum(row.num_samples for row in result.classes)
    assert result.auroc is not None
    assert 0.9 < result.auroc <= 1
    assert result.top5 is not None
    assert result.top1 < result.top5 <= 1
    name = f"local-dir:{MODELS / 'demo-a'}"
    theirs, _, transform = open_clip.create_model_and_transforms(name)
    templates = list(open_clip.SIMPLE_IMAGENET_TEMPLATES)
    weights = open_clip.build_zero_shot_classifier(
        theirs.eval(), open_clip.get_tokenizer(name), task.classnames, templates
    )
    assert torch.allclose(embed_classes(demo_a, task.classnames, task.templates), weights.T, atol=1e-5)
    pixels, labels = [], []
    for shard in sorted(Path(scenes).glob("*.tar")):
        for sample in SourceShard(shard, SourceConfig()).samples(with_labels=True):
            image = decode(sample.image, 10**9)
            if isinstance(image, np.ndarray):
                pixels.append(transform(Image.fromarray(image)))
                labels.append(int(sample.label or b""))
    with torch.inference_mode():
        guesses = (theirs.encode_image(torch.stack(pixels)) @ weights).argmax(dim=1)
    accuracy = float((guesses == torch.tensor(labels)).float().mean())
    assert result.top1 == pytest.approx(accuracy, abs=0.005)


def test_what_is_not_used_is_counted_by_reason(tmp_path: Path) -> None:
    members: Members = [
        *[(f"good{i}.{suffix}", data) for i in range(300) for suffix, data in (("png", image_bytes(1)), ("cls", b"1"))],
        ("unlabelled.png", image_bytes(0)),
        ("worded.png", image_bytes(0)),
        ("worded.cls", b"cat"),
        ("beyond.png", image_bytes(0)),
        ("beyond.cls", b"2"),
        ("negative.png", image_bytes(0)),
        ("negative.cls", b"-1\n"),
        ("imageless.cls", b"1"),
        ("broken.png", image_bytes(0)[:200]),
        ("broken.cls", b" 0\n"),
        ("good0.png", image_bytes(0)),
    ]
    write_tar(tmp_path / "a.tar", members)
    (tmp_path / "classnames.txt").write_text("red\nblue\n\n")
    result = ZeroShotTask(str(tmp_path)).evaluate(painter())
    assert result.num_samples == 300
    assert result.drops == {
        "bad_label": 1,
        "corrupt_image": 1,
        "duplicate_key": 1,
        "label_out_of_range": 2,
        "missing_image": 1,
        "missing_label": 1,
    }
    assert result.top5 is None
    assert (result.auroc, result.num_classes_without_auroc) == (None, 2)
    assert [(row.name, row.num_samples, row.accuracy is None) for row in result.classes] == [
        ("red", 0, True),
        ("blue", 300, False),
    ]


def test_labels_are_read_for_whoever_asks(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("a.png", b"x"), ("a.cls", b"3\n"), ("b.png", b"x")])
    shard = SourceShard(path, SourceConfig())
    assert [sample.label for sample in shard.samples(with_labels=True)] == [b"3\n", None]
    assert [sample.label for sample in shard.samples()] == [None, None]
    texts = {
        b"3\n": 3,
        b" 0 ": 0,
        b"-1": -1,
        b"": None,
        b"1.0": None,
        b"cat": None,
        "٣".encode(): None,
        b"9" * 99: None,
    }
    assert {text: images.parse_label(text) for text in texts} == texts


def test_figures_of_a_model_that_is_exact_by_construction(tmp_path: Path) -> None:
    """Three of four right; the wrong one, a grey image called green, is at one cosine from all colours."""
    labels = [("red", "0"), ("green", "1"), ("blue", "2"), ("grey", "1")]
    uri = write_colours(tmp_path, labels, [*COLOURS, "red and green"])
    result = ZeroShotTask(uri).evaluate(painter())
    assert (result.top1, result.mean_per_class, result.num_samples) == (0.75, (1 + 0.5 + 1) / 3, 4)
    # Against green: the green image at 1, the grey one at 0.577, the others at 0.
    assert [row.auroc for row in result.classes] == [1.0, 1.0, 1.0, None, None]
    assert (result.auroc, result.num_classes_without_auroc) == (1.0, 2)
    assert [row.accuracy for row in result.classes] == [1.0, 0.5, 1.0, None, None]


def test_top5_is_told_apart_from_top1(tmp_path: Path) -> None:
    mixes = ["red", "green", "blue", "red green", "red blue", "green blue", "grey"]
    uri = write_colours(tmp_path, [("red", "0"), ("red", "3"), ("red", "5")], mixes)
    result = ZeroShotTask(uri).evaluate(painter())
    # Red is before the mixes with red, grey before the colours without it.
    assert (result.top1, result.top5) == (1 / 3, 2 / 3)


def test_names_and_templates_are_found_above_the_shards_and_may_be_given(tmp_path: Path) -> None:
    uri = write_colours(tmp_path, [("red", "0"), ("blue", "2")])
    task = ZeroShotTask(uri)
    assert (task.classnames, task.templates) == (tuple(COLOURS), ("a photo of a {}.",))
    (tmp_path / "zeroshot_classification_templates.txt").write_text("the {c} {sic}\n\n{}\n")
    assert ZeroShotTask(f"{uri}/*.tar").templates == ("the {} {sic}", "{}")
    (tmp_path / "test" / "classnames.txt").write_text("\ufeffone\r\ntwo\r\n")
    assert ZeroShotTask(uri).classnames == ("one", "two")
    (tmp_path / "mine.txt").write_text("blue\ngreen\nred")
    given = ZeroShotTask(uri, classnames=str(tmp_path / "mine.txt"), templates="openai")
    assert (given.classnames[0], len(given.templates), given.templates[0]) == ("blue", 80, "a bad photo of a {}.")
    assert given.evaluate(painter()).top1 == 0


def test_a_selection_narrows_what_is_evaluated(tmp_path: Path) -> None:
    uri = write_colours(tmp_path, [("red", "0"), ("red", "1"), ("red", "2")])
    write_tar(tmp_path / "test" / "unselected.tar", [("x.png", b"not even an image")])
    select = write_selection(tmp_path / "s.parquet", [("a", "0"), ("a", "2")])
    result = ZeroShotTask(uri, select=select).evaluate(painter())
    assert (result.num_samples, result.top1, result.drops) == (2, 0.5, {"not_selected": 1})


def test_mistakes_are_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    uri = write_colours(tmp_path, [("red", "0"), ("blue", "2")])

    def task(**options: Any) -> Callable[[], object]:
        return lambda: ZeroShotTask(uri, **options).evaluate(painter())

    def file(text: bytes) -> str:
        (tmp_path / "file.txt").write_bytes(text)
        return str(tmp_path / "file.txt")

    assert "line 2 has no {} for the class name: 'a photo'" in refused(task(templates=file(b"{}\na photo")))
    assert "holds no template" in refused(task(templates=file(b"\n")))
    assert "no such file (nor openai or simple" in refused(task(templates="imagenet"))
    assert "no such file" in refused(task(classnames=str(tmp_path / "none.txt")))
    assert "line 2 is empty" in refused(task(classnames=file(b"a\n\nb")))
    assert "1 class names" in refused(task(classnames=file(b"a\n")))
    assert "is not UTF-8 text" in refused(task(classnames=file(b"\xff\na")))
    assert "1 of 2 labels" in refused(task(classnames=file(b"a\nb")))
    assert "2 class names and labels from 0 to 2" in refused(task(classnames=file(b"a\nb")))
    selections = {"the selection is empty": [], "none of its stems (b)": [("b", "0")], "none of its keys": [("a", "9")]}
    for message, pairs in selections.items():
        assert message in refused(task(select=write_selection(tmp_path / "s.parquet", pairs)))
    (tmp_path / "classnames.txt").unlink()
    assert "pass --classnames FILE" in refused(task())
    write_tar(tmp_path / "bare" / "b.tar", [("a.png", image_bytes(0)), ("b.png", image_bytes(1))])
    bare = str(tmp_path / "bare")
    names = file(b"a\nb")
    assert "has a .cls member" in refused(lambda: ZeroShotTask(bare, classnames=names).evaluate(painter()))
    assert "pass --captions json.FIELD" in refused(lambda: RetrievalTask(bare).evaluate(painter()))
    assert "give txt or json.FIELD" in refused(lambda: RetrievalTask(bare, captions="jpg"))
    (tmp_path / "bare" / "b.tar").write_bytes(b"<html>")
    assert "bare/b.tar is not a tar" in refused(lambda: ZeroShotTask(bare, classnames=names).evaluate(painter()))


def test_mistakes_of_the_command_are_told_before_any_model_is_loaded(tmp_path: Path) -> None:
    uri = write_colours(tmp_path, [("red", "0")])
    good = f"local-dir:{MODELS / 'demo-a'}"
    assert "no open_clip_config.json" in refused(lambda: evaluate_models([good, str(tmp_path)], uri))
    assert "no such folder" in refused(lambda: evaluate_models([good, "runs/none"], uri))
    assert "give a folder, local-dir:PATH" in refused(lambda: evaluate_models(["ViT-Z"], uri))
    assert "no architecture 'ViT-Z'" in refused(lambda: evaluate_models(["ViT-Z:openai"], uri))
    assert "only for --task retrieval" in refused(lambda: evaluate_models([good], uri, captions="txt"))
    assert "--templates: only for" in refused(lambda: evaluate_models([good], uri, task="retrieval", templates="x"))


def test_a_model_in_training_is_left_as_it_was(tmp_path: Path) -> None:
    module = Painter()
    assert (module.training, module.frozen.training) == (True, False)
    model = painter(module)
    task = ZeroShotTask(write_colours(tmp_path, [("red", "0"), ("blue", "2")]))
    state = torch.get_rng_state()
    assert task.evaluate(model).top1 == 1
    assert (module.training, module.frozen.training) == (True, False)
    assert torch.equal(torch.get_rng_state(), state)
    assert not module.seen[0].requires_grad
    module.encode_text(tokenize(["red"])).sum().backward()  # type: ignore[no-untyped-call]
    assert module.scale.grad is not None
    broken = dataclasses.replace(model, encode_text=lambda tokens: tokens[9])
    with pytest.raises(IndexError):
        task.evaluate(broken)
    assert (module.training, module.frozen.training) == (True, False)


def test_images_are_decoded_once_if_they_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = write_colours(tmp_path, [("red", "0"), ("blue", "2"), ("grey", "x")])
    decoded: list[int] = []

    def counted(data: bytes, max_pixels: int) -> object:
        decoded.append(len(data))
        return decode(data, max_pixels)

    monkeypatch.setattr(images, "decode", counted)
    task = ZeroShotTask(uri)
    first = task.evaluate(painter())
    assert (task.evaluate(painter()), len(decoded)) == (first, 2)
    task.evaluate(painter(size=12))
    assert len(decoded) == 4
    assert (task.evaluate(painter(size=12)).drops, len(decoded)) == ({"bad_label": 1}, 4)
    one_fits = ZeroShotTask(uri, cache_bytes=8 * 8 * 3)
    assert [one_fits.evaluate(painter()) for _ in range(2)] == [first, first]
    assert len(decoded) == 8


def test_a_model_that_gives_nan_is_never_right(tmp_path: Path) -> None:
    module = Painter()
    module.scale.data[:] = float("nan")
    result = ZeroShotTask(write_colours(tmp_path, [("red", "0"), ("blue", "2")])).evaluate(painter(module))
    assert (result.top1, result.auroc, result.num_non_finite) == (0, None, 6)
    json.dumps(result.to_json(), allow_nan=False)
    assert "painter: 6 embeddings not finite" in text_of(render_table([result]))


def text_of(table: Any, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_one_table_for_teachers_and_students(scenes: str, tmp_path: Path) -> None:
    models = [f"local-dir:{MODELS / 'demo-a'}", str(MODELS / "demo-b")]
    select = write_selection(tmp_path / "s.parquet", [("00001", f"00001{index:04d}") for index in range(80)])
    results = evaluate_models(models, [f"{scenes}/*.tar"], select=select, threads=1, console=Console(quiet=True))
    assert [result.model for result in results] == models
    shown = text_of(render_table(results))
    found = [result for result in results if isinstance(result, ZeroShotResult)]
    for expected in (f"{found[0].top1:.4f}", f"{found[1].auroc:.4f}", "0.90", "not_selected 120"):
        assert expected in shown
    rows = text_of(render_class_table(found)).splitlines()
    assert (rows[0].split(), len(rows)) == (["demo-a", "demo-a", "demo-b", "demo-b"], 2 + len(found[0].classes))


CAPTIONED = [
    ("red", ["something red", "a red thing"]),
    ("blue", ["blue", "green, by mistake"]),
    ("green", ["green"]),
]


def check_retrieval(result: Any) -> None:
    assert (result.num_images, result.num_captions) == (3, 5)
    # All but "green, by mistake", whose image is blue.
    assert result.text_to_image == {1: 4 / 5, 5: 1.0, 10: 1.0}
    # All but the green image: its own text stands no higher than that one.
    assert result.image_to_text == {1: 2 / 3, 5: 1.0, 10: 1.0}


def test_retrieval_with_several_captions_an_image(tmp_path: Path) -> None:
    members: list[tuple[str, bytes]] = []
    for index, (colour, captions) in enumerate(CAPTIONED):
        members += [
            (f"{index}.png", colour_bytes(colour)),
            (f"{index}.txt", "\n".join([*captions, ""]).encode()),
            (f"{index}.json", json.dumps({"captions": captions}).encode()),
        ]
    members += [("3.png", colour_bytes("red")), ("3.txt", b" \n"), ("3.json", b"{}")]
    write_tar(tmp_path / "a.tar", members)
    for field in ("txt", "json.captions"):
        result = RetrievalTask(str(tmp_path), captions=field).evaluate(painter())
        check_retrieval(result)
        assert result.drops == {"no_caption": 1}
    one = RetrievalTask(str(tmp_path), max_captions=1).evaluate(painter())
    assert (one.num_captions, one.text_to_image[1], one.counts["captions_over_bound"]) == (3, 1.0, 2)
    shown = text_of(render_table([one]))
    assert "3 images found by 3 captions" in shown
    assert "captions_over_bound 2" in shown
    assert json.loads(json.dumps(one.to_json()))["text_to_image"]["1"] == 1.0


def test_shards_and_names_in_a_bucket(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_test_credentials(monkeypatch)
    labels = [("red", "0"), ("blue", "2"), ("red", "1")]
    local = ZeroShotTask(write_colours(tmp_path, labels)).evaluate(painter())
    bucket = server.make_bucket("evaluation")
    for name in ("test/a.tar", "classnames.txt"):
        server.client().upload_file(str(tmp_path / name), bucket, f"colours/{name}")
    uri = f"s3://{bucket}/colours/test/*.tar?endpoint_url={server.endpoint}"
    assert ZeroShotTask(uri).evaluate(painter()) == local
    assert local.top1 == 2 / 3


def test_a_real_teacher_on_real_images(shared: Path, tmp_path: Path) -> None:
    """200 images of CIFAR-10; on all 2,000 the accuracy is 0.7700, open_clip's own to the image."""
    shard = shared / "data" / "cifar10" / "test" / "00000.tar"
    keys = [sample.key for sample in SourceShard(shard, SourceConfig()).samples()][::5]
    (tmp_path / "templates.txt").write_text("a photo of a {}\nan image of a {}\na blurry photo of a {}\n{}\n")
    task = ZeroShotTask(
        str(shard.parent),
        select=write_selection(tmp_path / "s.parquet", [("00000", key) for key in keys]),
        templates=str(tmp_path / "templates.txt"),
    )
    result = task.evaluate(load_embedding_model(f"local-dir:{shared / 'teachers' / 'cifar10-a'}", CPU))
    assert (result.num_samples, len(result.classes), result.num_templates) == (200, 10, 4)
    assert 0.68 < result.top1 < 0.86
