"""The published layout of DataCompDR, both ways, as pure functions: view parameters, embeddings, keys.

A sample is the members of one key: `url.txt`, `syn.json`, `paug.json`, `npz` or `pth.gz`, `json`, and an image and
`txt` once the user has joined them. Nothing is unpickled, and what a member unpacks to is bounded.
"""

import gzip
import io
import json
import math
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from reinforce.config import SourceConfig
from reinforce.sample import ViewOp
from reinforce.shards.explicit import ExplicitView, Size
from reinforce.views.draw import OP_NAMES

SIGNAL_MEMBERS = {"url": "url.txt", "syn": "syn.json", "paug": "paug.json", "npz": "npz", "pth": "pth.gz"}
"""Members beside image, `txt` and `json`, as a source's modalities: name -> suffix."""

PUBLISHED_CROP = 224
"""Translations are in pixels of a crop of this side."""

MAX_UNPACKED_BYTES = 64 * 2**20
"""Of a sample's embeddings: 250 times what 36 rows of 1,536 float32 values take."""

IMAGE_ROWS, TEXT_ROWS, CLEAN_ROWS = "image_emb", "text_emb", "clean_emb"
"""Arrays of a sample: views, captions, and (only in packed tars) the clean view."""

_TRANSLATIONS = ("TranslateX", "TranslateY")
_LARGEST_MAGNITUDE = 10_000.0

Rows = Float32[np.ndarray, "rows dim"]


class MemberError(ValueError):
    """A member that does not hold what the layout says it holds, in one line."""


def source_config(captions: Sequence[str], max_captions: int, max_pixels: int | None = None) -> SourceConfig:
    """How tars of the published layout are read as sources: their signals are modalities."""
    bound = {} if max_pixels is None else {"max_pixels": max_pixels}
    return SourceConfig.model_validate(
        {"captions": captions, "max_captions": max_captions, "modalities": SIGNAL_MEMBERS, **bound}
    )


def parse_json(data: bytes, name: str) -> dict[str, Any]:
    """A member that must be a JSON object; raises `MemberError`."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise MemberError(f"{name} is not JSON") from None
    if not isinstance(document, dict):
        raise MemberError(f"{name} is not a JSON object")
    return document


def parse_texts(document: Mapping[str, Any], field: str) -> list[str]:
    """A field that must be a list of strings; raises `MemberError`."""
    texts = document.get(field)
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise MemberError(f"{field} is not a list of strings")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise MemberError(f"{field} has a text that UTF-8 cannot hold") from None
    return texts


def parse_views(document: Mapping[str, Any]) -> list[ExplicitView]:
    """The views of a `paug.json`, whose `param_aug` may be a string that holds JSON; raises `MemberError`."""
    views = document.get("param_aug")
    if isinstance(views, str):
        try:
            views = json.loads(views)
        except (ValueError, RecursionError):
            raise MemberError("param_aug is a string that is not JSON") from None
    if not isinstance(views, list):
        raise MemberError("param_aug is not a list")
    return [_parse_view(view, number) for number, view in enumerate(views, start=1)]


def format_views(views: Sequence[ExplicitView]) -> list[Any]:
    """`param_aug` of these views."""
    return [
        [
            [view.top, view.left, view.height, view.width],
            [[OP_NAMES.index(op.name), _published_value(op)] for op in view.ops],
        ]
        for view in views
    ]


def parse_box(value: Any) -> tuple[int, int, int, int]:
    """[top, left, height, width] in whole pixels; raises `MemberError`."""
    if not isinstance(value, list) or len(value) != 4 or not all(_is_whole(side) for side in value):
        raise MemberError("a box is not [top, left, height, width] in whole pixels")
    top, left, height, width = (int(side) for side in value)
    if min(top, left) < 0 or min(height, width) < 1 or max(top + height, left + width) >= 2**31:
        raise MemberError(f"a box of {width} x {height} at ({left}, {top}) is none")
    return top, left, height, width


def parse_size(document: Mapping[str, Any]) -> Size | None:
    """`image_width` and `image_height`, if they are there; raises `MemberError` if they are no size."""
    width: Any = document.get("image_width")
    height: Any = document.get("image_height")
    if width is None and height is None:
        return None
    if not (_is_whole(width) and _is_whole(height) and 0 < width < 2**31 and 0 < height < 2**31):
        raise MemberError("image_width and image_height are no size")
    return int(width), int(height)


def _parse_view(view: Any, number: int) -> ExplicitView:
    if not isinstance(view, list) or len(view) != 2:
        raise MemberError(f"view {number} is not [box, operations]")
    box, ops = view
    if ops is not None and not isinstance(ops, list):
        raise MemberError(f"view {number}: operations are not a list")
    # What a recipe's probabilities skipped, an operation or all of them, is null.
    return ExplicitView(*parse_box(box), ops=tuple(_parse_op(op) for op in ops or () if op is not None))


def _parse_op(op: Any) -> ViewOp:
    if not isinstance(op, list) or len(op) != 2 or not _is_whole(op[0]) or not _is_number(op[1]):
        raise MemberError("an operation is not [number, magnitude]")
    index, magnitude = int(op[0]), float(op[1])
    if not 0 <= index < len(OP_NAMES):
        raise MemberError(f"operation {index} is none of 0..{len(OP_NAMES) - 1}")
    name = OP_NAMES[index]
    if abs(magnitude) > _LARGEST_MAGNITUDE or (name == "Posterize" and not 0 <= magnitude <= 8):
        raise MemberError(f"{name} has the magnitude {magnitude:g}")
    return ViewOp(name, magnitude / PUBLISHED_CROP if name in _TRANSLATIONS else magnitude)


def _published_value(op: ViewOp) -> float:
    return op.value * PUBLISHED_CROP if op.name in _TRANSLATIONS else op.value


def _is_number(value: Any) -> bool:
    # JSON has integers that no float can hold; NaN is less than nothing.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63


def _is_whole(value: Any) -> bool:
    return _is_number(value) and value == int(value)


def read_embeddings(npz: bytes | None, pth: bytes | None) -> dict[str, Rows]:
    """The arrays of a sample in float32, by name; raises `MemberError`."""
    if npz is not None:
        return _read_npz(npz)
    if pth is not None:
        return _read_pth(pth)
    raise MemberError("no npz and no pth.gz")


def write_npz(arrays: Mapping[str, Rows]) -> bytes:
    """float32 arrays as an `npz`, the same bytes for the same arrays."""
    file = io.BytesIO()
    in_full: dict[str, Any] = {name: np.asarray(rows, np.float32) for name, rows in arrays.items()}
    np.savez_compressed(file, **in_full)
    return file.getvalue()


def write_pth(arrays: Mapping[str, Rows]) -> bytes:
    """The arrays in bfloat16 as torch saves them, gzipped; the same bytes for the same arrays."""
    import torch

    file = io.BytesIO()
    torch.save({name: torch.from_numpy(np.ascontiguousarray(rows)).bfloat16() for name, rows in arrays.items()}, file)
    return gzip.compress(file.getvalue(), mtime=0)


def _read_npz(data: bytes) -> dict[str, Rows]:
    arrays = {}
    with _open_zip(data, "npz") as archive:
        for name in (IMAGE_ROWS, TEXT_ROWS, CLEAN_ROWS):
            if f"{name}.npy" in archive.namelist():
                try:
                    arrays[name] = _read_npy(_read_member(archive, f"{name}.npy"))
                except Exception as error:  # zipfile and its decompressors raise whatever damage leads them to
                    raise MemberError(f"npz: {name} is damaged ({' '.join(str(error).split())[:100]})") from None
    return arrays


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """A member no longer than it says: `archive.read` would unpack all of one whose size is forged."""
    with archive.open(name) as file:
        return file.read(archive.getinfo(name).file_size + 1)


def _read_npy(data: bytes) -> Rows:
    """An array whose header is believed only as far as the bytes behind it go."""
    file = io.BytesIO(data)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(file)
    if version not in read:
        raise ValueError(f"version {version} of npy")
    shape, is_fortran, dtype = read[version](file)
    values = data[file.tell() :]
    if dtype.kind != "f" or len(shape) != 2 or is_fortran or math.prod(shape) * dtype.itemsize != len(values):
        raise ValueError(f"{dtype} of shape {shape} in {len(values)} bytes")
    return np.frombuffer(values, dtype).reshape(shape).astype(np.float32)


def _read_pth(data: bytes) -> dict[str, Rows]:
    import torch

    try:
        unpacked = zlib.decompressobj(31).decompress(data, MAX_UNPACKED_BYTES + 1)
    except zlib.error:
        raise MemberError("pth.gz is not gzip, or damaged") from None
    if len(unpacked) > MAX_UNPACKED_BYTES:
        raise MemberError(f"pth.gz unpacks to more than {MAX_UNPACKED_BYTES:,} bytes")
    with _open_zip(unpacked, "pth.gz"):
        pass
    try:
        tensors = torch.load(io.BytesIO(unpacked), weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises whatever the bytes lead it to
        raise MemberError(f"pth.gz does not load ({' '.join(str(error).split())[:100]})") from None
    arrays = {}
    for name in (IMAGE_ROWS, TEXT_ROWS, CLEAN_ROWS):
        tensor = tensors.get(name) if isinstance(tensors, dict) else None
        if tensor is None:
            continue
        # A view of a few stored values may claim any shape.
        is_rows = isinstance(tensor, torch.Tensor) and tensor.ndim == 2 and tensor.is_floating_point()
        if not is_rows or 4 * tensor.numel() > MAX_UNPACKED_BYTES:
            raise MemberError(f"pth.gz: {name} is no matrix of this size")
        arrays[name] = tensor.float().numpy()
    return arrays


def _open_zip(data: bytes, name: str) -> zipfile.ZipFile:
    """A zip whose members do not unpack to more than the bound."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except Exception:  # likewise
        raise MemberError(f"{name} is no zip archive, or cut") from None
    if any(info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for info in archive.infolist()):
        # Python unpacks the others' blocks whole, whatever their size.
        raise MemberError(f"{name} is compressed by other means than deflate")
    if sum(info.file_size for info in archive.infolist()) > MAX_UNPACKED_BYTES:
        raise MemberError(f"{name} unpacks to more than {MAX_UNPACKED_BYTES:,} bytes")
    return archive


def escape_key(key: str) -> str:
    """A key that WebDataset, which ends a key at the first dot of the name, does not cut; `__x__/` it would skip."""
    folder, slash, name = key.replace("%", "%25").rpartition("/")
    escaped = folder + slash + name.replace(".", "%2E")
    return re.sub(r"^_(?=_[^/]*__($|/))", "%5F", escaped)
