"""What `label` shows a model against what it was trained on, and what decoding large JPEGs smaller gains.

    python -m tests.benchmarks.label_pixels        (about a minute on one core)

60 photographs of coco_mini through the image towers of both teachers of ../shared: cosine of the embeddings of label's
pixels to those of `views.render`, with JPEGs decoded whole and at a fraction (twice the size, or once, left to resize).
Then CPU time from bytes to pixels of the same photographs at several sizes.
"""

import io
import tarfile
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image

from reinforce.decode import decode
from reinforce.deploy.label import preprocess
from reinforce.deploy.label.preprocess import clean_view, decode_rgb, normalised
from reinforce.sample import Pixels, View
from reinforce.views.render import render
from tests.benchmarks.timing import alternate
from tests.benchmarks.truth import SHARED, TEACHERS, load
from tests.tars import encode

LIMIT = 10**9
OVERSAMPLING = {"whole": 10**6, "twice": 2, "once": 1}
SIZE = 224


def coco_mini() -> list[bytes]:
    found = []
    for path in sorted((SHARED / "data" / "coco_mini").glob("*.tar")):
        with tarfile.open(path) as tar:
            members = [tar.extractfile(info) for info in tar if info.name.endswith(".jpg")]
            found += [member.read() for member in members if member is not None]
    return found


def pixels_of(data: bytes, size: int, oversampling: int) -> Pixels:
    preprocess._DRAFT_OVERSAMPLING = oversampling
    image, part = decode_rgb(data, LIMIT, size)
    return clean_view(image, part, size)


def print_agreement(images: list[bytes]) -> None:
    print("| teacher | decoded | grey levels | cosine, mean | least |\n|---|---|---|---|---|")
    for name in TEACHERS:
        model, transform, _ = load(name)
        side, mean, std = model.visual.image_size, transform.transforms[-1].mean, transform.transforms[-1].std
        size = side if isinstance(side, int) else side[0]

        def embed(
            views: list[Pixels], model: torch.nn.Module = model, mean: tuple = mean, std: tuple = std
        ) -> np.ndarray:
            batch = torch.from_numpy(np.concatenate([normalised(view, mean, std) for view in views]))
            with torch.inference_mode():
                return torch.nn.functional.normalize(model.encode_image(batch), dim=-1).numpy()  # type: ignore[operator]

        trained_on = [render(np.asarray(decode(data, LIMIT)), View(box=None), size) for data in images]
        for how, oversampling in OVERSAMPLING.items():
            shown = [pixels_of(data, size, oversampling) for data in images]
            levels = np.mean([np.abs(a.astype(int) - b).mean() for a, b in zip(shown, trained_on, strict=True)])
            cosines = (embed(shown) * embed(trained_on)).sum(axis=1)
            row = f"{levels:.3f} | {cosines.mean():.5f} | {cosines.min():.5f}"
            print(f"| {name}, {size} px | {how} | {row} |", flush=True)


def run_all(images: list[bytes], oversampling: int) -> None:
    for data in images:
        pixels_of(data, SIZE, oversampling)


def print_times(images: list[bytes]) -> None:
    print(f"\n| photographs of | decoded | CPU time to {SIZE} px |\n|---|---|---|")
    for width, height in ((640, 480), (1280, 720), (1920, 1080), (4000, 3000)):
        scaled = [Image.open(io.BytesIO(data)).convert("RGB").resize((width, height)) for data in images[:6]]
        encoded = [encode(image, "JPEG", quality=90) for image in scaled]

        sides = {how: partial(run_all, encoded, value) for how, value in OVERSAMPLING.items()}
        for how, costs in alternate(dict[str, Callable[[], object]](sides), 5).items():
            print(f"| {width} x {height} | {how} | {1e3 * costs.cpu_s / len(encoded):.1f} ms |", flush=True)


if __name__ == "__main__":
    photographs = coco_mini()
    print_agreement(photographs)
    print_times(photographs)
