"""A student's tokenizer: CLIP's byte-pair encoding or a transformers tokenizer, exactly as open_clip applies it.

It is small to pickle (a folder's name at most) and loads the vocabulary at its first use, so that every worker process
of a reader has its own. About 0.1 ms a caption; which captions were cut costs one more pass over only those.
"""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from reinforce.config import ConfigError

_LOCAL_KEYS = ("is_local", "local_files_only")
"""What transformers notes in tokenizer_config.json about how a tokenizer was once loaded."""


@dataclass(frozen=True)
class StudentTokenizer:
    """Texts to rows of `context_length` ids, padded at the right, cut at the end if they are longer."""

    context_length: int
    folder: str | None = None
    """Of a transformers tokenizer; None: CLIP's byte-pair encoding."""
    options: dict[str, Any] = field(default_factory=dict)
    """open_clip's `tokenizer_kwargs`."""

    def __call__(self, texts: list[str]) -> Int64[Tensor, "texts context"]:
        return self._ids(texts, self.context_length)

    def truncated(self, texts: list[str]) -> Bool[np.ndarray, " texts"]:
        """Which texts are cut at the context length."""
        return self.tokenize(texts)[1]

    def tokenize(self, texts: list[str]) -> tuple[Int64[Tensor, "texts context"], Bool[np.ndarray, " texts"]]:
        """The ids, and which texts were cut."""
        if not texts:
            return torch.zeros(0, self.context_length, dtype=torch.int64), np.zeros(0, bool)
        # With room for one id more, a text that fits is as it was, and one that does not is known by the last column.
        longer = self._ids(texts, self.context_length + 1)
        is_cut = longer[:, self._column_of_cut] != self._pad_id
        ids = longer[:, :-1].contiguous()
        if bool(is_cut.any()):
            rows = is_cut.nonzero().flatten()
            ids[rows] = self._ids([texts[row] for row in rows.tolist()], self.context_length)
        return ids, np.asarray(is_cut.numpy())

    def text_cfg(self, name: str) -> dict[str, Any]:
        """What the text tower of an open_clip model has to know of a transformers tokenizer called `name`.

        Raises ConfigError for a tokenizer that no text tower here can use.
        """
        where = f"student.model.tokenizer: {name}"
        try:
            empty, end_id = self._ids([""], self.context_length)[0].tolist(), int(self._full_row[-1])
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"{where} is no tokenizer that pads and cuts ({one_line(error)})") from None
        if self._tokenize.tokenizer.padding_side != "right":
            raise ConfigError(f"{where} pads at the left; use one that pads at the right")
        if end_id not in empty:
            raise ConfigError(f"{where} ends its texts with no end token, where the text tower is read; use another")
        return {
            "vocab_size": max(self._tokenize.tokenizer.get_vocab().values()) + 1,
            "hf_tokenizer_name": name,  # local-dir reads the tokenizer from its own folder, if this is not empty
            "pad_id": self._pad_id,
            "eos_id": end_id,
            "pool_type": "eos",
        }

    def save(self, folder: Path) -> None:
        """Writes the files of a transformers tokenizer; CLIP's own encoding has none."""
        if self.folder is None:
            return
        self._ids([""], self.context_length)  # transformers saves the length that it was last called with
        self._tokenize.save_pretrained(folder)
        path = folder / "tokenizer_config.json"
        kept = {key: value for key, value in json.loads(path.read_text()).items() if key not in _LOCAL_KEYS}
        path.write_text(json.dumps(kept, indent=2) + "\n")

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("context_length", "folder", "options")}

    def _ids(self, texts: list[str], length: int) -> Int64[Tensor, "texts length"]:
        ids: Tensor = self._tokenize(texts, context_length=length)
        return ids

    @cached_property
    def _tokenize(self) -> Any:
        import open_clip

        if self.folder is not None:
            return open_clip.tokenizer.HFTokenizer(self.folder, context_length=self.context_length, **self.options)
        # open_clip has made one for itself on import; another takes 17 MB more.
        return open_clip.SimpleTokenizer(**self.options) if self.options else open_clip.tokenize

    @cached_property
    def _pad_id(self) -> int:
        return int(self._ids([""], self.context_length + 1)[0, -1])

    @cached_property
    def _full_row(self) -> Int64[Tensor, " length"]:
        return self._ids(["a cat " * self.context_length], self.context_length + 1)[0]

    @cached_property
    def _column_of_cut(self) -> int:
        """The last of context_length + 1 columns; the one before where a text ends with the id that also pads."""
        return self.context_length - (int(self._full_row[-1]) == self._pad_id)


def tokenizer_folder(name: str, field_name: str) -> str:
    """The local folder of a transformers tokenizer: itself, or what the hub has of it, without any weights."""
    if Path(name).is_dir():
        return name
    from huggingface_hub import snapshot_download

    try:
        return str(snapshot_download(name, allow_patterns=["*.json", "*.txt", "*.model", "*.jinja"]))
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise ConfigError(
            f"student.model.{field_name}: the tokenizer {name} is no folder and was not fetched from the hub "
            f"({one_line(error)})"
        ) from None


def one_line(error: BaseException) -> str:
    """What an error of a library says, fit for a message of ours."""
    return " ".join(str(error).split())[:300] or type(error).__name__
