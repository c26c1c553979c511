"""A text tower as one ONNX file, so that a device can embed new labels: CLIP's tokens in, unit-norm embeddings out.

The student's own, or for an image tower alone that of the teacher it was trained against. The file is there only if
onnxruntime gave PyTorch's embeddings with it. About 20 seconds and 255 MB for the tower of a ViT-B-32, 65 MB in int8,
on one core. Needs the extra `edge`.
"""

import gzip
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from reinforce.deploy.agreement import open_session
from reinforce.deploy.export import check_request, write_file
from reinforce.deploy.graph import MIN_OPSET, quiet, to_onnx
from reinforce.deploy.label.tokenizer import ClipTokenizer
from reinforce.deploy.student_labels import recorded_teachers
from reinforce.deploy.text_file import TextCard
from reinforce.image_tower import STUDENT_NAME, WEIGHTS_NAME, is_image_tower
from reinforce.software import versions
from reinforce.student.models import Student, load_student
from reinforce.text_tower import text_encoder
from reinforce.weights import ModelError, check_sha256, load_open_clip

MIN_COSINE = {"fp32": 0.9999, "int8": 0.99}
"""Least agreement of any embedding of a file with PyTorch's, by its precision."""

CHECKED_TEXTS = (
    "a photo of a cat.",
    "a blurry photo of a Red fire engine, at night",
    "Two dogs' toys & 3 boats: it's 12:30, isn't it?",
    "Zwei Kinder auf einem Fußballfeld – ein Mädchen im grünen Trikot",
    "街の写真 #東京, 2020 ½ 🐈‍⬛",
    "men’s ‘shoes’ &amp; ﬁne cafe\u0301s",
    "x",
    "",
    "a very long text " * 40,
)
_MAX_PARAMETERS = 500_000_000
"""An ONNX file holds no more than 2 GiB."""
_NUM_MERGES = 49152 - 256 - 2
_SAME = 1e-5
_PACKAGES = ("torch", "open_clip_torch", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True, kw_only=True)
class TextExportReport:
    """What was written; how well it agrees with PyTorch says its card."""

    output: Path
    num_bytes: int
    num_parameters: int
    card: TextCard


@dataclass(frozen=True)
class _Source:
    """The model whose text tower is exported; `tokenize` is open_clip's own for it."""

    model: Any
    tokenize: Callable[[list[str]], Tensor]
    context_length: int
    teacher: str | None
    weights_sha256: str


class _TextTower(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        model.visual = torch.nn.Identity()  # else the image tower is among the parameters
        self.model = model
        self.encode = text_encoder(model)

    def forward(self, tokens: Int64[Tensor, "batch length"]) -> Float[Tensor, "batch dim"]:
        return torch.nn.functional.normalize(self.encode(tokens), dim=-1)


def check_text_request(folder: Path, output: Path, image_output: Path, teacher: str | None) -> None:
    """Raises ModelError, before anything is exported, for what `export_text_onnx` would refuse of these alone."""
    if output.resolve() == image_output.resolve():
        raise ModelError(f"export --text {output}: the image tower goes there; name another file")
    check_request(output, MIN_OPSET)
    if is_image_tower(folder) and teacher is None:
        raise _no_teacher(folder, recorded_teachers(folder))


def export_text_onnx(
    student_folder: Path | str, output: Path | str, *, teacher: str | None = None, int8: bool = False
) -> TextExportReport:
    """Writes `output`, replacing an earlier one; `teacher` is what open_clip opens, for an image tower alone.

    Its input, output and metadata are those of `TextCard`. Raises ModelError, with nothing written, if there is no
    such text tower, if the teacher's weights are not those that student.json records, if its tokenizer is not CLIP's
    byte-pair encoding, or if any embedding's cosine to PyTorch's is below 0.9999 (int8: 0.99).
    """
    folder, output = Path(student_folder), Path(output)
    check_request(output, MIN_OPSET)
    student = load_student(folder)
    source = _own(student, folder, teacher) if student.has_text else _of_teacher(folder, teacher)
    merges = clip_merges()
    tokens, lengths = _tokens(source, merges)
    tower = _TextTower(source.model).eval()
    num_parameters = sum(parameter.numel() for parameter in tower.parameters())
    if num_parameters > _MAX_PARAMETERS:
        raise ModelError(f"export --text: {num_parameters / 1e6:.0f} M parameters do not go into one ONNX file (2 GB)")
    with torch.inference_mode():
        expected = tower(torch.from_numpy(tokens)).double().numpy()
    if expected.shape[1] != student.embed_dim:
        sizes = f"{expected.shape[1]} values a text, the student {student.embed_dim} an image"
        raise ModelError(f"export --text: the text tower has {sizes}; it is of another space")
    takes_shorter = _takes_shorter(tower, tokens, lengths, expected)
    model = _to_onnx(tower, tokens, takes_shorter=takes_shorter, int8=int8)
    cosines = _cosines(model, tokens, lengths if takes_shorter else [tokens.shape[1]] * len(tokens), expected)
    precision = "int8" if int8 else "fp32"
    if not cosines.min() >= MIN_COSINE[precision]:  # NaN too
        raise ModelError(
            f"export --text {folder}: the ONNX file and PyTorch agree to a cosine of {cosines.min():.6f} at worst, "
            f"less than {MIN_COSINE[precision]}; nothing was written"
        )
    card = _card(folder, source, student.embed_dim, takes_shorter, precision, cosines, merges)
    num_bytes = write_file(model, card.to_metadata(), output)
    return TextExportReport(output=output, num_bytes=num_bytes, num_parameters=num_parameters, card=card)


def clip_merges() -> tuple[str, ...]:
    """The merges of CLIP's byte-pair encoding as open_clip has them, by rank."""
    with gzip.open(open_clip.tokenizer.default_bpe()) as file:
        lines = file.read().decode().split("\n")
    return tuple(lines[1 : 1 + _NUM_MERGES])


def _own(student: Student, folder: Path, teacher: str | None) -> _Source:
    if teacher:
        raise ModelError(f"export --teacher {teacher}: {folder} has a text tower of its own; leave --teacher out")
    assert student.tokenizer is not None
    assert student.context_length is not None
    sha256 = check_sha256([folder / WEIGHTS_NAME], None)
    return _Source(student.model, student.tokenizer, student.context_length, None, sha256)


def _of_teacher(folder: Path, teacher: str | None) -> _Source:
    """The teacher of an image tower alone, refused unless it is the one that the student was trained against."""
    path, recorded = folder / STUDENT_NAME, recorded_teachers(folder)
    if teacher is None:
        raise _no_teacher(folder, recorded)
    loaded = load_open_clip(teacher)
    found = [name for name, sha256 in recorded.items() if sha256 == loaded.weights_sha256]
    if not found:
        raise ModelError(
            f"export --teacher {teacher}: its weights ({loaded.weights_sha256[:12]}) are not those that {path} records "
            f"({', '.join(f'{name} {str(sha256)[:12]}' for name, sha256 in recorded.items()) or 'none'})"
        )
    return _Source(
        loaded.model, loaded.tokenizer, int(loaded.tokenizer.context_length), found[0], loaded.weights_sha256
    )


def _no_teacher(folder: Path, recorded: dict[str, Any]) -> ModelError:
    names = ", ".join(recorded) or "none is recorded"
    return ModelError(f"export --text: {folder} is an image tower alone; give its teacher ({names}) by --teacher")


def _tokens(source: _Source, merges: tuple[str, ...]) -> tuple[Int64[np.ndarray, "texts context"], list[int]]:
    """The texts to check with as a device tokenises them, which must be as open_clip does, and their lengths."""
    tokens, lengths = ClipTokenizer(merges, source.context_length)(CHECKED_TEXTS)
    if not np.array_equal(tokens, source.tokenize(list(CHECKED_TEXTS)).numpy()):
        raise ModelError("export --text: this text tower has a tokenizer other than CLIP's, the one a device can run")
    return tokens, [min(length, source.context_length) for length in lengths]


def _takes_shorter(
    tower: torch.nn.Module, tokens: Int64[np.ndarray, "texts context"], lengths: list[int], expected: np.ndarray
) -> bool:
    """Whether texts give the same without the padding behind them."""
    try:
        with torch.inference_mode():
            rows = [tower(torch.from_numpy(row[None, :length])) for row, length in zip(tokens, lengths, strict=True)]
    except RuntimeError:  # a tower that takes the whole context only
        return False
    return bool(np.allclose(torch.cat(rows).double().numpy(), expected, rtol=0, atol=_SAME))


def _to_onnx(
    tower: torch.nn.Module, tokens: Int64[np.ndarray, "texts context"], *, takes_shorter: bool, int8: bool
) -> Any:
    dynamic: dict[int, Any] = {0: torch.export.Dim("batch")}
    if takes_shorter:
        dynamic[1] = torch.export.Dim("length", max=tokens.shape[1])
    model = to_onnx(tower, "tokens", torch.from_numpy(tokens), dynamic, MIN_OPSET)
    return _in_int8(model) if int8 else model


def _in_int8(model: Any) -> Any:
    """Weights in 8 bits, a scale a column; activations as they come, so nothing is to be calibrated."""
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    with tempfile.TemporaryDirectory(prefix="reinforce-export-") as folder:
        path = Path(folder) / "text.onnx"
        with quiet():
            quantize_dynamic(model, path, per_channel=True)
        return onnx.load(path)


def _cosines(
    model: Any,
    tokens: Int64[np.ndarray, "texts context"],
    lengths: list[int],
    expected: Float64[np.ndarray, "texts dim"],
) -> Float64[np.ndarray, " both"]:
    """Of each text to PyTorch's, among the others in the whole context and alone in its own length."""
    session = open_session(model.SerializeToString())
    (together,) = session.run(["embedding"], {"tokens": tokens})
    alone = [
        session.run(["embedding"], {"tokens": row[None, :length]})[0]
        for row, length in zip(tokens, lengths, strict=True)
    ]
    found = np.concatenate([together, *alone])
    cosines: Float64[np.ndarray, " both"] = (np.concatenate([expected, expected]) * found).sum(axis=1)
    return cosines


def _card(
    folder: Path,
    source: _Source,
    embed_dim: int,
    takes_shorter: bool,
    precision: str,
    cosines: Float64[np.ndarray, " both"],
    merges: tuple[str, ...],
) -> TextCard:
    bias = getattr(source.model, "logit_bias", None)
    return TextCard(
        embed_dim=embed_dim,
        context_length=source.context_length,
        takes_shorter=takes_shorter,
        precision=precision,
        student_sha256=check_sha256([folder / WEIGHTS_NAME], None),
        teacher=source.teacher,
        weights_sha256=source.weights_sha256,
        logit_scale=float(source.model.logit_scale.detach().exp().max()),
        logit_bias=None if bias is None else float(bias.detach().max()),
        software=versions(*_PACKAGES),
        agreement={
            "num_texts": len(CHECKED_TEXTS),
            "min_cosine": float(cosines.min()),
            "mean_cosine": float(cosines.mean()),
        },
        merges=merges,
    )
