"""What an exported text tower says of itself: its tokens, whose it is, how well it agreed.

All of it, CLIP's vocabulary too (0.3 MB), stands in the ONNX file's own metadata. Written by `export --text`, read by
`label`; numpy and the standard library alone, no torch.
"""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import asdict, dataclass

from reinforce.deploy.model_file import ModelCard, ModelFileError, check_scale, reading

TEXT_FILE_VERSION = 1

_CARD, _MERGES = "reinforce.text", "reinforce.merges"


@dataclass(frozen=True, kw_only=True, eq=False)
class TextCard:
    """The file's input `tokens` is int64 [batch, length], its output `embedding` unit-norm float32
    [batch, embed_dim]. `length` is `context_length`; with `takes_shorter` it may be less, as long as every text of the
    batch is in it up to its end token."""

    embed_dim: int
    context_length: int
    takes_shorter: bool
    precision: str
    """`fp32`, or `int8`: the weights, and activations as they come."""
    student_sha256: str
    """Of the weights of the student in whose space the texts are embedded."""
    teacher: str | None
    """Whose text tower it is; None: the student's own."""
    weights_sha256: str
    """Of the model that the tower is of."""
    logit_scale: float
    logit_bias: float | None
    software: dict[str, str]
    agreement: dict[str, float]
    """With PyTorch, over the texts it was checked with: `num_texts`, `min_cosine`, `mean_cosine`."""
    merges: tuple[str, ...]
    """Of CLIP's byte-pair encoding, by rank."""

    def to_metadata(self) -> dict[str, str]:
        """As the metadata of an ONNX file, text by name."""
        card = {"version": TEXT_FILE_VERSION} | {key: value for key, value in asdict(self).items() if key != "merges"}
        merges = zlib.compress("\n".join(self.merges).encode(), 9)
        return {_CARD: json.dumps(card, ensure_ascii=False), _MERGES: base64.b64encode(merges).decode()}

    @classmethod
    def from_metadata(cls, metadata: dict[str, str]) -> TextCard:
        """The card of a file; raises `ModelFileError` that says what is wrong with it."""
        with reading(metadata, _CARD, TEXT_FILE_VERSION, "not a text tower exported by reinforce") as card:
            check_scale(card["logit_scale"], card["logit_bias"])
            merges = zlib.decompress(base64.b64decode(metadata[_MERGES], validate=True)).decode()
            return cls(**card, merges=tuple(merges.split("\n")))

    def check_same_space(self, model: ModelCard) -> None:
        """Raises `ModelFileError` unless the image model was exported of the same student."""
        if model.student_sha256 != self.student_sha256:
            raise ModelFileError(
                f"embeds texts for the student {self.student_sha256[:12]}, the model is of "
                f"{model.student_sha256[:12]}; export both of one student"
            )
