"""Writes generated scenes as the web would give them: tar shards, noisy captions, and some images that are unusual.

Members of a sample: `KEY.jpg`, `KEY.txt` (the noisy caption, if there is one), `KEY.cls` (the class index) and
`KEY.json` (what is really shown, and what is wrong with the caption or the image), and `KEY.depth.png` if asked for.
Scenes to measure models with are written with nothing wrong or unusual. The bytes depend on the arguments and on the
versions of numpy and Pillow only. About 7 ms an image.
"""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from reinforce.demo.captions import TEMPLATES, NoisyCaption, describe, draw_noisy_caption, truth
from reinforce.demo.depth import render_depth
from reinforce.demo.painting import render_scene
from reinforce.demo.scenes import TRAINING_SEEDS, Scene, draw_scene
from reinforce.demo.shapes import CLASSES

ODD_EVERY = 60
"""One image in so many is unusual, each kind in turn; a third of those are of no use to anyone."""

ODD_DEPTHS = ("missing", "truncated", "missing", "zero_bytes")
"""What is wrong with the depth of one sample in `ODD_EVERY`, in turn; its image is plain."""

_MAX_IMAGES = 1 << 24
_HTML = b"<!DOCTYPE html>\n<html><head><title>404</title></head><body>Not Found</body></html>\n"
_ORIENTATION = 0x0112


def write_scenes(
    folder: Path,
    *,
    num_images: int,
    images_per_shard: int = 500,
    seed: int = 0,
    clean: bool = False,
    modality: Literal["depth"] | None = None,
) -> list[Path]:
    """Writes `00000.tar`, `00001.tar`, ... and `classnames.txt` into `folder`; returns the shards in order.

    Another `seed` gives other scenes. `clean` ones are to measure models with: every image is a plain JPEG, every
    caption right, and prompt templates lie beside them. With `modality` the same scenes have a depth image besides, of
    3/4 of the size; in all but `clean` ones some lack it or have a damaged one.
    """
    import webdataset  # slow: it imports torch

    seeds = scene_seeds(seed, num_images)
    if images_per_shard < 1:
        raise ValueError(f"images_per_shard {images_per_shard} must be at least 1")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classnames.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    if clean:
        (folder / "zeroshot_classification_templates.txt").write_text("".join(f"{words}\n" for words in TEMPLATES))
    shards = []
    for shard, start in enumerate(range(0, num_images, images_per_shard)):
        shards.append(folder / f"{shard:05d}.tar")
        with webdataset.TarWriter(str(shards[-1]), encoder=False, mtime=0) as writer:
            for index in range(start, min(start + images_per_shard, num_images)):
                members = _members(seed, index, seeds[index], clean, with_depth=modality == "depth")
                writer.write({"__key__": f"{shard:05d}{index - start:04d}"} | members)
    return shards


def scene_seeds(seed: int, num_scenes: int) -> range:
    """The seeds of `draw_scene` that a data set of this `seed` has; those of two data sets are disjoint."""
    if not 0 < num_scenes <= _MAX_IMAGES:
        raise ValueError(f"{num_scenes} scenes must be from 1 to {_MAX_IMAGES}")
    if not 0 <= seed < TRAINING_SEEDS // _MAX_IMAGES:
        raise ValueError(f"seed {seed} must be from 0 to {TRAINING_SEEDS // _MAX_IMAGES - 1}")
    return range(seed * _MAX_IMAGES, seed * _MAX_IMAGES + num_scenes)


def encode_jpeg(image: Image.Image, quality: int, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, **options)
    return buffer.getvalue()


def _members(seed: int, index: int, scene_seed: int, clean: bool, with_depth: bool) -> dict[str, bytes]:
    """The members of one sample, suffix -> bytes."""
    scene = draw_scene(scene_seed)
    rng = np.random.default_rng([scene_seed, 1])
    width, height, quality = (int(number) for number in rng.integers((80, 80, 85), (161, 161, 91)))
    image = render_scene(scene, (width, height))
    caption = NoisyCaption(describe(scene, rng).encode(), "right") if clean else draw_noisy_caption(scene, rng)
    is_odd = not clean and index % ODD_EVERY == (seed * 7 + 31) % ODD_EVERY
    kind = list(ODD_IMAGES)[index // ODD_EVERY % len(ODD_IMAGES)] if is_odd else "plain"
    suffix, encode = ODD_IMAGES[kind] if is_odd else ("jpg", encode_jpeg)
    facts = {"truth": truth(scene), "noise": caption.noise, "image": kind, "class": scene.things[0].kind}
    depth = {}
    if with_depth:
        facts["depth"] = _depth_kind(seed, index, clean)
        depth = _depth_member(scene, image.size, facts["depth"])
    members = {suffix: encode(image, quality), "cls": b"%d" % scene.class_index, "json": json.dumps(facts).encode()}
    return members | depth | ({} if caption.text is None else {"txt": caption.text})


def _depth_kind(seed: int, index: int, clean: bool) -> str:
    if clean or index % ODD_EVERY != (seed * 7 + 11) % ODD_EVERY:
        return "plain"
    return ODD_DEPTHS[index // ODD_EVERY % len(ODD_DEPTHS)]


def _depth_member(scene: Scene, size: tuple[int, int], kind: str) -> dict[str, bytes]:
    if kind == "missing":
        return {}
    width, height = (round(0.75 * side) for side in size)
    data = _encode_as(Image.fromarray(render_depth(scene, (width, height))), "PNG")
    return {"depth.png": {"plain": data, "truncated": data[: len(data) * 2 // 5], "zero_bytes": b""}[kind]}


def _encode_as(image: Image.Image, file_format: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format)
    return buffer.getvalue()


def _truncate(image: Image.Image, quality: int) -> bytes:
    data = encode_jpeg(image, quality)
    return data[: len(data) * 2 // 5]


def _lay_on_its_side(image: Image.Image, quality: int) -> bytes:
    """As a camera held upright stores it: the pixels turned, and a tag that says so."""
    exif = Image.Exif()
    exif[_ORIENTATION] = 6
    return encode_jpeg(image.transpose(Image.Transpose.ROTATE_90), quality, exif=exif)


ODD_IMAGES: dict[str, tuple[str, Callable[[Image.Image, int], bytes]]] = {
    "truncated": ("jpg", _truncate),
    "cmyk": ("jpg", lambda image, quality: encode_jpeg(image.convert("CMYK"), quality)),
    "rotated": ("jpg", _lay_on_its_side),
    "zero_bytes": ("jpg", lambda image, quality: b""),
    "grey": ("jpg", lambda image, quality: encode_jpeg(image.convert("L"), quality)),
    "png": ("png", lambda image, quality: _encode_as(image, "PNG")),
    "html": ("jpg", lambda image, quality: _HTML),
    "webp": ("webp", lambda image, quality: _encode_as(image, "WEBP")),
    "uppercase": ("JPG", encode_jpeg),
}
"""Kind -> suffix and encoder. `truncated`, `zero_bytes` and `html` cannot be decoded; the others must be."""

USELESS_IMAGES = ("truncated", "zero_bytes", "html")
