"""Two shards whose samples have thermal and depth images, or lack them in every way, and the dataset made of them."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from reinforce.plan import BuildPlan
from tests.fakes import fake_plan, run
from tests.tars import Members, encode, image_bytes, pairs, write_tar

MODALITIES = {"thermal": "ir.png", "depth": {"suffix": "depth.png", "range": [200, 4000]}}
SOURCE = {"max_pixels": 5000}


def depth(index: int, width: int = 30, height: int = 20) -> bytes:
    return encode(Image.fromarray((np.arange(width * height).reshape(height, width) * (7 + index)).astype(np.uint16)))


def members() -> Members:
    """k0 has both, k1..k6 lack one or another: not there, empty, no image, cut off, too large; k7 has it turned.

    RGB images that are dropped have modalities too, and so has a key that comes again.
    """
    turned = Image.Exif()
    turned[0x0112] = 6
    thermal = {
        0: image_bytes(50, 33, 22), 2: b"", 3: b"nothing", 4: image_bytes(54)[:-60], 5: image_bytes(55, 100, 51),
        6: encode(Image.new("L", (9, 8), 3)), 7: encode(Image.new("RGB", (12, 10)), "JPEG", exif=turned),
    }  # fmt: skip
    found = pairs(8)
    found += [(f"{index:05d}.ir.png", data) for index, data in thermal.items()]
    found += [(f"{index:05d}.DEPTH.png", depth(index)) for index in range(7)]
    found += [("bad.png", b"none"), ("bad.ir.png", image_bytes(60)), ("alone.ir.png", image_bytes(61))]
    return [*found, ("00000.ir.png", image_bytes(62)), ("00000.swir.png", image_bytes(63))]


def plan(changes: dict[str, Any] | None = None, teachers: Any = None) -> BuildPlan:
    return fake_plan({"modalities": MODALITIES, "source": SOURCE} | (changes or {}), teachers=teachers)


def build_modalities(folder: Path) -> Path:
    """The folder with `source` and `dataset`: shards `one`, as above, and `sub/two`, in which all is well."""
    write_tar(folder / "source/one.tar", members())
    write_tar(folder / "source/sub/two.tar", [*pairs(5), *((f"{i:05d}.ir.png", image_bytes(i)) for i in range(5))])
    summary = run(plan(), folder / "source", folder / "dataset")
    assert (summary.failed, summary.done.num_kept) == ({}, 13)
    reasons = {"no_modality": 2, "not_an_image": 1, "corrupt_image": 1, "too_many_pixels": 1}
    nulls = {f"{reason} in modalities/thermal": number for reason, number in reasons.items()}
    found = {name: number for name, number in summary.done.nulls.items() if "modalities" in name}
    assert found == nulls | {"no_modality in modalities/depth": 1 + 5}
    return folder
