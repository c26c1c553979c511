"""What a student sees of further modalities: the same part of the scene, from the same rows, each fault counted."""

from pathlib import Path

import numpy as np
from PIL import Image

from reinforce.config import ModalityConfig
from reinforce.evaluation.images import Example, ShardImages, Skipped
from tests.tars import encode, write_tar


def test_evaluation_reads_a_modality_in_place_of_rgb(tmp_path: Path) -> None:
    members = []
    for index, value in enumerate((1000, 3000, 9000)):
        deep = Image.fromarray(np.full((6, 9), value, np.uint16))
        members += [(f"{index}.png", encode(Image.new("RGB", (12, 8)))), (f"{index}.cls", b"1")]
        members.append((f"{index}.depth.png", encode(deep)))
    rest = [("plain.png", encode(Image.new("RGB", (4, 4)))), ("plain.cls", b"0"), ("alone.cls", b"0")]
    rest += [("alone.depth.png", encode(Image.fromarray(np.full((6, 9), 5000, np.uint16))))]
    rest += [("torn.png", encode(Image.new("RGB", (4, 4)))), ("torn.cls", b"0"), ("torn.depth.png", b"\x89PNG")]
    write_tar(tmp_path / "a.tar", members + rest)
    depth = ModalityConfig.model_validate({"suffix": "depth.png", "range": [1000, 9000]})
    found = list(ShardImages(str(tmp_path), needs="label", modality=depth).examples(4))
    values = [(int(each.pixels.mean()), each.label) for each in found if isinstance(each, Example)]
    assert values == [(0, 1), (64, 1), (255, 1), (128, 0)]
    assert [each.reason for each in found if isinstance(each, Skipped)] == ["no_modality", "not_an_image"]
