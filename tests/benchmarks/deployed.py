"""What `deployment` needs torch for, each in a process of its own; a line of JSON is its answer.

    python -m tests.benchmarks.deployed random BACKBONE IMAGE_SIZE FOLDER
    python -m tests.benchmarks.deployed export STUDENT FILE SHARDS x86|-
    python -m tests.benchmarks.deployed describe STUDENT
    python -m tests.benchmarks.deployed card FILE
    python -m tests.benchmarks.deployed score LABELLED TRUTH

`random`: a student of random weights, for what does not depend on them: speed, memory, bytes. Its batch normalisation
has seen images, so that activations are of the size that training gives them, and its bank holds random directions.
`export`: of such a student, which need not agree as a trained one must. `card`: what an exported file says of itself.
`score`: accuracy and macro AUROC, as `reinforce evaluate` computes them, of what `reinforce label --json` printed.
"""

import json
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import torch

from reinforce.config import StudentModelConfig
from reinforce.deploy import export
from reinforce.deploy.images import NormalisedImages, choose_images
from reinforce.evaluation.metrics import auroc
from reinforce.student.models import build_student, load_student, save_student
from tests.banks import save_random_bank
from tests.benchmarks.macs import count_macs

SHARED = Path(__file__).parents[3] / "shared"
TRAIN = SHARED / "data/cifar10/train"
EMBED_DIM, NUM_SEEN_IMAGES, BATCH_SIZE = 512, 128, 32


def make_random(backbone: str, image_size: int, folder: Path) -> None:
    has_own_layer = backbone.startswith("mobilenetv4")  # before its pooled features, where an MLP would go
    config = StudentModelConfig(
        backbone=backbone,
        projection="linear" if has_own_layer else "mlp",
        image_size=image_size,
        embed_dim=EMBED_DIM,
        text=None,
    )
    student = build_student(config, seed=0)
    for module in student.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean over all that is seen, not a moving one
    images = choose_images([str(TRAIN)], image_size, NUM_SEEN_IMAGES, seed=0).images["rgb"]
    with torch.no_grad():
        pixels = NormalisedImages(images, student)
        for start in range(0, len(pixels), BATCH_SIZE):
            student.model.train().encode_image(pixels[start : start + BATCH_SIZE])
    save_student(student, folder)
    labels = tuple((TRAIN.parent / "classnames.txt").read_text().split())
    save_random_bank(folder, "cifar10", labels, EMBED_DIM)


def describe(folder: Path) -> dict[str, Any]:
    student = load_student(folder)
    network = student.model.visual
    return {
        "backbone": student.config["model_cfg"]["vision_cfg"].get("timm_model_name", folder.name),
        "image_size": student.image_size,
        "num_parameters": sum(parameter.numel() for parameter in network.parameters()),
        "macs": count_macs(network, student.image_size),
    }


def export_anyway(student: Path, output: Path, shards: str, target: Literal["x86"] | None) -> None:
    """As `reinforce export`, whatever the agreement of int8 with PyTorch."""
    export.MIN_MEAN_COSINE_INT8 = export.MIN_TOP1_INT8 = -1.0
    export.export_onnx(student, output, shards=[shards], target=target)


def card_of(path: Path) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    card: dict[str, Any] = json.loads(session.get_modelmeta().custom_metadata_map["reinforce.model"])
    return card


def score(labelled: Path, truth: Path) -> dict[str, Any]:
    """`labelled`: the lines of `label`, with a cosine for every label; `truth`: the label of every file name."""
    expected = json.loads(truth.read_text())
    rows = [json.loads(line) for line in labelled.read_text().splitlines()]
    names = [expected[Path(row["path"]).name] for row in rows]
    assert len(rows) == len(expected), f"{len(rows)} of {len(expected)} images have a line"
    scores = [dict(zip(row["labels"], row["scores"], strict=True)) for row in rows]
    aurocs = []
    for name in sorted(set(names)):
        of_class = auroc(np.array([row[name] for row in scores]), np.array([other == name for other in names]))
        assert of_class is not None, f"{name} is the only class"
        aurocs.append(of_class)
    hits = [row["labels"][0] == name for row, name in zip(rows, names, strict=True)]
    return {"num_images": len(rows), "accuracy": float(np.mean(hits)), "macro_auroc": float(np.mean(aurocs))}


def main() -> None:
    torch.set_num_threads(1)
    match sys.argv[1:]:
        case ["random", backbone, image_size, folder]:
            make_random(backbone, int(image_size), Path(folder))
        case ["export", student, output, shards, target]:
            export_anyway(Path(student), Path(output), shards, "x86" if target == "x86" else None)
        case ["card", path]:
            print(json.dumps(card_of(Path(path))))
        case ["describe", student]:
            print(json.dumps(describe(Path(student))))
        case ["score", labelled, truth]:
            print(json.dumps(score(Path(labelled), Path(truth))))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
