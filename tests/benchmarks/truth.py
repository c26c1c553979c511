"""Is what is stored true? A CIFAR-10 build against open_clip itself, and random cells against the source image alone.

    python -m tests.benchmarks.truth [--dataset DIR]        (about 15 minutes on two cores; the build is most of it)

Needs ../shared. Nothing of `reinforce.teachers` takes part in the check: models and preprocessing are open_clip's own.
"""

import argparse
import io
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from torch.nn.functional import normalize

import reinforce
from reinforce.config import ViewPolicy
from reinforce.decode import decode
from reinforce.views.draw import draw
from reinforce.views.render import render

REPOSITORY = Path(__file__).parents[2]
SHARED = REPOSITORY.parent / "shared"
TEACHERS = {"cifar10_a": "cifar10-a", "cifar10_b": "cifar10-b"}
TEMPLATES = ["a photo of a {}", "an image of a {}", "a blurry photo of a {}", "{}"]


def load(name: str) -> tuple[Any, Any, Any]:
    path = f"local-dir:{SHARED / 'teachers' / TEACHERS[name]}"
    model, _, preprocess = open_clip.create_model_and_transforms(path)
    return model.eval(), preprocess, open_clip.get_tokenizer(path)


def members(split: str, stem: str) -> dict[str, dict[str, bytes]]:
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(SHARED / "data" / "cifar10" / split / f"{stem}.tar") as tar:
        for info in tar:
            key, _, suffix = info.name.rpartition(".")
            file = tar.extractfile(info)
            assert file is not None
            found.setdefault(key, {})[suffix] = file.read()
    return found


@torch.inference_mode()
def own_embeddings(name: str, images: list[bytes]) -> np.ndarray:
    model, preprocess, _ = load(name)
    rows = []
    for start in range(0, len(images), 100):
        batch = [preprocess(Image.open(io.BytesIO(data))) for data in images[start : start + 100]]
        rows.append(normalize(model.encode_image(torch.stack(batch)), dim=-1).numpy())
    return np.concatenate(rows)


@torch.inference_mode()
def zero_shot_weights(name: str) -> np.ndarray:
    model, _, tokenizer = load(name)
    names = (SHARED / "data" / "cifar10" / "classnames.txt").read_text().split()
    texts = [template.format(label) for label in names for template in TEMPLATES]
    embeddings = normalize(model.encode_text(tokenizer(texts)), dim=-1)
    return normalize(embeddings.view(len(names), len(TEMPLATES), -1).mean(dim=1), dim=-1).numpy()


def unit_norm(stored: np.ndarray) -> np.ndarray:
    """Stored rows in fp32; rounding the significand moves their norm by up to 1e-3 in these few dimensions."""
    rows = stored.astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def kept_rows(dataset: Any, stem: str) -> list[dict[str, Any]]:
    return [row for row in dataset.spine(stem).to_pylist() if row["drop_reason"] is None]


def check_spine(dataset: Any) -> str:
    keys = [key for stem in dataset.stems for key in dataset.spine(stem).column("key").to_pylist()]
    wanted = [key for stem in dataset.stems for key in members("train", stem)]
    assert sorted(keys) == sorted(wanted)
    assert len(set(keys)) == len(keys)
    return f"{len(keys):,} keys, each once"


def check_test_set(dataset: Any, name: str) -> tuple[np.ndarray, tuple[float, float]]:
    """Cosines of stored view 0 to open_clip's own embeddings, and the zero-shot accuracy of both."""
    stored, own, labels = [], [], []
    for stem in dataset.stems:
        samples = members("test", stem)
        stored.append(unit_norm(dataset.numpy(f"embeddings/{name}/image", stem, "view_000")))
        keys = [row["key"] for row in kept_rows(dataset, stem)]
        own.append(own_embeddings(name, [samples[key]["jpg"] for key in keys]))
        labels += [int(samples[key]["cls"]) for key in keys]
    ours, theirs, weights = np.concatenate(stored), np.concatenate(own), zero_shot_weights(name)
    cosines = (ours * theirs).sum(axis=1)
    accuracies = [float(((rows @ weights.T).argmax(axis=1) == labels).mean()) for rows in (ours, theirs)]
    return cosines, (accuracies[0], accuracies[1])


@torch.inference_mode()
def recompute_cells(folder: str, num_cells: int, seed: int, split: str = "train", num_views: int = 6) -> np.ndarray:
    """Cosines of random stored (sample, view, teacher) cells to ones made from the source image alone."""
    dataset = reinforce.open_dataset(folder)
    policy = ViewPolicy.model_validate(dataset.document["view_policy"])
    generator = np.random.default_rng(seed)
    models = {name: load(name) for name in TEACHERS}
    cosines = []
    for _ in range(num_cells):
        stem = dataset.stems[generator.integers(len(dataset.stems))]
        name = list(TEACHERS)[generator.integers(len(TEACHERS))]
        rows = kept_rows(dataset, stem)
        row_index, view_index = int(generator.integers(len(rows))), int(generator.integers(num_views))
        row = rows[row_index]
        image = decode(members(split, stem)[row["key"]]["jpg"], 10**9)
        assert isinstance(image, np.ndarray)
        model, preprocess, _ = models[name]
        view = draw(policy, row["view_seed"], view_index, row["image_width"], row["image_height"])
        size = open_clip.get_model_preprocess_cfg(model)["size"]
        pixels = render(image, view, size if isinstance(size, int) else size[0])
        to_tensor = preprocess.transforms[-2:]
        tensor = to_tensor[1](to_tensor[0](Image.fromarray(pixels)))
        expected = normalize(model.encode_image(tensor[None]), dim=-1)[0].numpy()
        stored = dataset.numpy(f"embeddings/{name}/image", stem, f"view_{view_index:03d}")[row_index]
        cosines.append(float(unit_norm(stored[None])[0] @ expected))
    return np.array(cosines)


def build(split: str, output: Path) -> Any:
    shards = str(SHARED / "data" / "cifar10" / split)
    command = ["build", "--shards", shards, "--recipe", "cifar10", "--output", str(output)]
    subprocess.run([sys.executable, "-m", "reinforce", *command], check=True, stderr=subprocess.DEVNULL)
    return reinforce.open_dataset(str(output))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", type=Path, help="build here, or use what is here")
    parser.add_argument("--cells", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cells:
        cosines = recompute_cells(str(arguments.cells), 100, seed=0)
        print(f"{cosines.min():.5f} / {np.median(cosines):.5f}")
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.dataset or Path(temporary)
        train, test = build("train", folder / "train"), build("test", folder / "test")
        print("\n| check | figure |\n|---|---|")
        print(f"| spine of cifar10/train | {check_spine(train)} |")
        for name in TEACHERS:
            cosines, (ours, theirs) = check_test_set(test, name)
            figures = f"{cosines.min():.5f} / {np.median(cosines):.5f}"
            print(f"| {name}: stored view 0 to open_clip's own, cosine min / median | {figures} |")
            print(f"| {name}: zero-shot top-1 on cifar10/test, stored / open_clip's own | {ours:.4f} / {theirs:.4f} |")
        command = [sys.executable, "-m", "tests.benchmarks.truth", "--cells", str(folder / "train")]
        cells = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        print(f"| 100 random cells recomputed in a fresh process, cosine min / median | {cells} |")


if __name__ == "__main__":
    main()
