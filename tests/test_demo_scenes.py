"""The demo's data is reproducible and as dirty as it says; its models are real: they load offline and see."""

import io
import json
import socket
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from reinforce.demo import MODELS
from reinforce.demo.captions import NOISE_SHARES, describe, draw_noisy_caption, names, truth
from reinforce.demo.depth import FARTHEST_MM, NEAREST_MM, render_depth
from reinforce.demo.measure import LoadedTeacher, caption_accuracy, caption_scenes, held_out_scenes
from reinforce.demo.painting import render_classes, render_scene
from reinforce.demo.scenes import BACKGROUNDS, COLOURS, Scene, draw_scene
from reinforce.demo.sentences import write_sentences
from reinforce.demo.shapes import CLASSES
from reinforce.demo.shards import ODD_DEPTHS, ODD_EVERY, ODD_IMAGES, USELESS_IMAGES, write_scenes

NUM_IMAGES = ODD_EVERY * len(ODD_IMAGES)
Members = dict[str, bytes]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Members]:
    """The members of every sample of one small data set, by suffix."""
    folder = tmp_path_factory.mktemp("scenes")
    shards = write_scenes(folder, num_images=NUM_IMAGES, images_per_shard=200, seed=3)
    assert [path.name for path in shards] == ["00000.tar", "00001.tar", "00002.tar"]
    assert (folder / "classnames.txt").read_text().split() == list(CLASSES)
    return _samples_of(shards)


def _samples_of(shards: list[Path]) -> list[Members]:
    grouped: dict[str, Members] = {}
    for path in shards:
        with tarfile.open(path) as tar:
            for member in tar:
                key, suffix = member.name.split(".", 1)
                file = tar.extractfile(member)
                assert file is not None
                assert member.mtime == 0
                grouped.setdefault(key, {})[suffix] = file.read()
    return list(grouped.values())


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return held_out_scenes(200)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(*_: object) -> NoReturn:
        raise AssertionError("the demo must not use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _facts(sample: Members) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(sample["json"])
    return facts


def _image_of(sample: Members) -> bytes:
    (data,) = [data for suffix, data in sample.items() if suffix in ("jpg", "JPG", "png", "webp")]
    return data


def test_seed_fixes_every_byte(tmp_path: Path) -> None:
    def write(name: str, seed: int) -> list[bytes]:
        return [
            path.read_bytes() for path in write_scenes(tmp_path / name, num_images=40, images_per_shard=25, seed=seed)
        ]

    first = write("first", 5)
    assert write("again", 5) == first
    assert all(a != b for a, b in zip(write("other", 6), first, strict=True))


def test_sentences_are_about_the_scenes_of_their_seed_and_their_bytes_are_fixed_by_it(tmp_path: Path) -> None:
    def write(name: str, seed: int) -> list[bytes]:
        files = write_sentences(tmp_path / name, num_sentences=500, sentences_per_file=300, seed=seed)
        assert [file.name for file in files] == ["00000.txt", "00001.txt"]
        return [file.read_bytes() for file in files]

    first = write("first", 3)
    assert write("again", 3) == first
    assert [data.count(b"\n") for data in first] == [300, 200]
    lines = b"".join(first).split(b"\n")[:-1]
    assert 0.05 < np.mean([not line.strip() for line in lines]) < 0.15
    naming = {seed: _share_naming(lines, seed) for seed in (0, 1, 2, 3)}
    assert naming[3] > 0.6
    assert max(naming[seed] for seed in (0, 1, 2)) < 0.2


def _share_naming(lines: list[bytes], seed: int) -> float:
    """The share of lines that name what the scene of their number shows."""
    scenes = [draw_scene(seed * (1 << 24) + index) for index in range(len(lines))]
    return float(
        np.mean([names(line.decode("latin-1"), scene.things[0]) for line, scene in zip(lines, scenes, strict=True)])
    )


def test_scenes_are_varied_and_their_things_lie_apart_within_the_central_square() -> None:
    drawn = [draw_scene(seed) for seed in range(1500)]
    for options, values in [
        (CLASSES, [scene.things[0].kind for scene in drawn]),
        (COLOURS, [scene.things[0].colour for scene in drawn]),
        (BACKGROUNDS, [scene.background for scene in drawn]),
    ]:
        assert min(Counter(values)[name] for name in options) > 0.4 * len(drawn) / len(options)
    for scene in drawn:
        assert all(max(abs(thing.x), abs(thing.y)) + thing.size / 2 < 0.56 for thing in scene.things)
        if len(scene.things) == 2:
            main, other = scene.things
            apart = {"left of": other.x - main.x, "right of": main.x - other.x}
            apart |= {"above": other.y - main.y, "below": main.y - other.y}
            assert apart[scene.relation] > (main.size + other.size) / 2


def test_a_scene_shows_the_same_at_any_size_and_shape() -> None:
    for scene in held_out_scenes(20):
        wide, square = render_scene(scene, (160, 96)), render_scene(scene, 96)
        assert (wide.size, square.size) == ((160, 96), (96, 96))
        main = scene.things[0]
        middle = (48 + 96 * main.x, 48 + 96 * main.y)
        colours = [
            np.asarray(image.crop((int(x) - 3, int(y) - 3, int(x) + 4, int(y) + 4)), np.float32).mean((0, 1))
            for image, (x, y) in [(square, middle), (wide, (middle[0] + 32, middle[1]))]
        ]
        if main.kind != "ring":  # through which the background is seen
            assert np.abs(colours[0] - colours[1]).max() < 25


def test_right_captions_name_what_is_shown_and_vary() -> None:
    rng = np.random.default_rng(0)
    for scene in held_out_scenes(200):
        main = scene.things[0]
        captions = {describe(scene, rng) for _ in range(8)}
        assert len(captions) > 4
        assert all(names(caption, main) for caption in captions)
        assert names(truth(scene), main, with_colour=True)
        absent = set(COLOURS) - {thing.colour for thing in scene.things} - {scene.tint}
        if scene.background not in ("sky", "grass", "water", "snow"):  # whose captions name their own colour
            assert not any(f" {colour} " in f" {caption} " for colour in absent for caption in captions)


def test_noise_comes_in_the_stated_shares() -> None:
    rng = np.random.default_rng(1)
    drawn = [(scene, draw_noisy_caption(scene, rng)) for scene in held_out_scenes(500) for _ in range(4)]
    counts = Counter(caption.noise for _, caption in drawn)
    for noise, share in NOISE_SHARES.items():
        assert counts[noise] / len(drawn) == pytest.approx(share, abs=0.035)
        assert counts[noise]
    assert sum(NOISE_SHARES.values()) == pytest.approx(1)
    for scene, caption in drawn:
        if caption.noise in ("right", "terse", "wrong", "junk"):
            assert caption.text is not None
            assert names(caption.text.decode(), scene.things[0]) == (caption.noise in ("right", "terse"))


def test_members_agree_with_the_stated_noise(samples: list[Members]) -> None:
    assert len(samples) == NUM_IMAGES
    for sample in samples:
        facts = _facts(sample)
        assert CLASSES[int(sample["cls"])] == facts["class"]
        assert ("txt" in sample) == (facts["noise"] != "missing")
        if facts["noise"] == "empty":
            assert not sample["txt"].strip()
        if facts["noise"] == "undecodable":
            with pytest.raises(UnicodeDecodeError):
                sample["txt"].decode()
    assert 0.4 < np.mean([_facts(sample)["noise"] == "right" for sample in samples]) < 0.7


def test_every_odd_image_occurs_and_only_the_useless_cannot_be_decoded(samples: list[Members]) -> None:
    counts = Counter(_facts(sample)["image"] for sample in samples)
    assert all(counts[kind] == 1 for kind in ODD_IMAGES), counts
    sizes = set()
    for sample in samples:
        kind, data = _facts(sample)["image"], _image_of(sample)
        if kind in USELESS_IMAGES:
            with pytest.raises(OSError):  # noqa: PT011
                Image.open(io.BytesIO(data)).load()
            continue
        image = Image.open(io.BytesIO(data))
        image.load()
        sizes.add(image.size)
        assert image.mode == {"grey": "L", "cmyk": "CMYK"}.get(kind, "RGB")
        assert kind in ("png", "webp") or image.format == "JPEG"
    assert len(sizes) > 100
    assert {side for size in sizes for side in size} <= set(range(80, 161))


def test_rotated_image_is_upright_once_its_tag_is_heeded(samples: list[Members]) -> None:
    (index,) = [index for index, sample in enumerate(samples) if _facts(sample)["image"] == "rotated"]
    stored = Image.open(io.BytesIO(_image_of(samples[index])))
    upright = ImageOps.exif_transpose(stored)
    assert upright.size == stored.size[::-1]
    painted = render_scene(draw_scene(3 * (1 << 24) + index), upright.size)
    difference = np.abs(np.asarray(upright, np.float32) - np.asarray(painted, np.float32)).mean()
    assert difference < 6


def test_depth_goes_beside_the_members_that_are_there_without_it(samples: list[Members], tmp_path: Path) -> None:
    num_images = ODD_EVERY * len(ODD_DEPTHS)
    written = _samples_of(write_scenes(tmp_path, num_images=num_images, images_per_shard=200, seed=3, modality="depth"))
    counts: Counter[str] = Counter()
    for with_depth, without in zip(written, samples[:num_images], strict=True):
        facts = _facts(with_depth)
        kind, data = facts.pop("depth"), with_depth.pop("depth.png", None)
        counts[kind] += 1
        assert facts == _facts(without)
        assert with_depth | {"json": b""} == without | {"json": b""}
        if kind != "plain":
            assert facts["image"] == "plain"
            assert data is None if kind == "missing" else data is not None and not _decodes(data)
            continue
        assert data is not None
        depth = Image.open(io.BytesIO(data))
        assert (depth.format, depth.mode) == ("PNG", "I;16")
        if facts["image"] not in (*USELESS_IMAGES, "rotated"):
            size = Image.open(io.BytesIO(_image_of(without))).size
            assert depth.size == tuple(round(0.75 * side) for side in size)
    assert set(counts) == {"plain", *ODD_DEPTHS}
    assert counts["plain"] == num_images - len(ODD_DEPTHS)


def _decodes(data: bytes) -> bool:
    try:
        Image.open(io.BytesIO(data)).load()
    except OSError:
        return False
    return True


def test_depth_shows_the_things_where_they_are_with_their_parts(scenes: list[Scene]) -> None:
    agreement, with_parts = [], []
    for scene in scenes[:60]:
        depth = render_depth(scene, (96, 72))
        known = depth > 0
        assert 0.9 < known.mean() < 1
        assert NEAREST_MM <= depth[known].min() <= depth.max() <= FARTHEST_MM
        thing = np.asarray(render_classes(scene, (96, 72))) == 1 + scene.class_index
        # Its outline is where distances jump: nearly all that lies around it is farther than all of it.
        row, column = np.nonzero(thing)
        around = np.zeros_like(thing)
        around[max(row.min() - 2, 0) : row.max() + 3, max(column.min() - 2, 0) : column.max() + 3] = True
        others = np.asarray(render_classes(scene, (96, 72))) > 0
        beside = depth[around & ~others & known].astype(int)
        agreement.append(np.mean(beside > np.median(depth[thing & known])))
        with_parts.append(np.ptp(np.percentile(depth[thing & known].astype(int), (5, 95))))
    assert np.mean(agreement) > 0.95
    assert np.mean([spread > 60 for spread in with_parts]) > 0.2


def test_depth_is_that_of_the_scene_whatever_its_colours(scenes: list[Scene]) -> None:
    scene = scenes[0]
    painted = replace(scene, light=1.0, things=tuple(replace(thing, colour="pink") for thing in scene.things))
    assert np.array_equal(render_depth(painted, (60, 60)), render_depth(scene, (60, 60)))
    other = replace(scene, texture_seed=scene.texture_seed + 1)
    assert not np.array_equal(render_depth(other, (60, 60)), render_depth(scene, (60, 60)))
    assert {render_depth(tiny, (2, 1)).shape for tiny in scenes[:20]} == {(1, 2)}


@pytest.mark.parametrize("name", ["demo-a", "demo-b"])
def test_teacher_knows_the_classes_and_prefers_the_truth(name: str, scenes: list[Scene]) -> None:
    teacher = LoadedTeacher(MODELS / name)
    assert teacher.zero_shot_accuracy(scenes) > 0.88  # chance is 0.083
    assert teacher.preference_for_truth(scenes) > 0.93  # chance is 0.5


@pytest.mark.parametrize("name", ["demo-a", "demo-b"])
def test_tokenizer_takes_any_text_and_keeps_the_end(name: str) -> None:
    teacher = LoadedTeacher(MODELS / name)
    texts = ["", "a CAR", "a car", "zebra été 漢字 IMG_2041.jpg", "a red car " * 40]
    tokens = teacher.tokenizer(texts)
    assert tokens.shape == (5, teacher.model.context_length)
    end = teacher.tokenizer.tokenizer.eos_token_id
    assert tokens.amax(1).tolist() == [end] * 5
    assert tokens[4, -1] == end
    assert torch.equal(tokens[1], tokens[2])
    assert torch.isfinite(teacher.embed_texts(texts)).all()


def test_teachers_differ_in_what_a_build_must_not_assume() -> None:
    configs = [json.loads((MODELS / name / "open_clip_config.json").read_text()) for name in ("demo-a", "demo-b")]
    for field in ("mean", "std"):
        assert len({tuple(config["preprocess_cfg"][field]) for config in configs}) == 2
    for field in ("embed_dim", "vision_cfg", "text_cfg"):
        assert configs[0]["model_cfg"][field] != configs[1]["model_cfg"][field]
    assert configs[0]["model_cfg"]["vision_cfg"]["image_size"] != configs[1]["model_cfg"]["vision_cfg"]["image_size"]


def test_captioner_says_what_it_sees(scenes: list[Scene]) -> None:
    named, coloured = caption_accuracy(caption_scenes(MODELS / "demo-captioner", scenes), scenes)
    assert named > 0.8  # chance is 0.1
    assert coloured > 0.8


def test_captioner_samples_alike_with_and_without_a_cache(scenes: list[Scene]) -> None:
    model = AutoModelForImageTextToText.from_pretrained(MODELS / "demo-captioner").eval()
    processor = AutoProcessor.from_pretrained(MODELS / "demo-captioner")
    assert model.dtype == torch.float32  # though stored in half precision
    inputs = processor(images=[render_scene(scene, 96) for scene in scenes[:8]], return_tensors="pt")
    texts = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        options = {"do_sample": True, "top_p": 0.9, "max_new_tokens": 30, "use_cache": use_cache}
        texts.append(processor.batch_decode(model.generate(pixel_values=inputs["pixel_values"], **options), True))
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 4


def test_models_are_small_and_stored_in_half_precision() -> None:
    weights = sorted(MODELS.rglob("*.safetensors"))
    assert len(weights) == 3
    assert all(tensor.dtype == torch.float16 for path in weights for tensor in load_file(path).values() if tensor.ndim)
    assert sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file()) < 10e6
