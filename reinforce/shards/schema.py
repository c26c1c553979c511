"""The format on disk, version 1: which files there are, their Arrow schemas, their footers, their rounding.

Writer and reader meet only here. `docs/format.md` is the normative text; `tests/golden` pins it byte by byte.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Float16

FORMAT_VERSION = 1
MAX_ROW_GROUP_ROWS = 1024
FOOTER_KEY = b"reinforce"
CARD_FILE = "README.md"
BANK_FILE = "bank.json"
CORPUS_FILE = "corpus.json"

SPINE_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("captions", pa.list_(pa.field("element", pa.string(), nullable=False)), nullable=False),
        pa.field("modalities", pa.list_(pa.field("element", pa.string(), nullable=False)), nullable=False),
        pa.field("image_width", pa.int32()),
        pa.field("image_height", pa.int32()),
        pa.field("image_sha256", pa.binary(32)),
        pa.field("view_seed", pa.uint64(), nullable=False),
        pa.field("drop_reason", pa.string()),
        pa.field("drop_detail", pa.string()),
    ]
)
"""A row for every source sample, in source order. `drop_reason` null: kept."""

CAPTIONS_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("captions", pa.list_(pa.field("element", pa.string(), nullable=False))),
    ]
)
"""A row for every kept sample. `captions` null: the captioner gave none."""


MODALITY_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("sha256", pa.binary(32)),
        pa.field("null_reason", pa.string()),
    ]
)
"""A row for every kept sample: its image of one modality, upright. `null_reason` null: it is there and decodes; else
`no_modality` or a drop's reason for images, and the others are null."""


SENTENCES_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("text", pa.string()),
        pa.field("drop_reason", pa.string()),
        pa.field("drop_detail", pa.string()),
    ]
)
"""The spine of a file of sentences: a row for each of its records, in their order. `drop_reason` null: kept; else
`text` is null."""

SENTENCE_COLUMN = "embedding"
"""The one column after `key` in the embeddings of sentences, which have a row for every kept one."""


def embeddings_schema(columns: list[str], dim: int) -> pa.Schema:
    """The schema of an embedding file: `key`, then one nullable float16 vector column for each view or caption."""
    vector = pa.list_(pa.field("element", pa.float16(), nullable=False), dim)
    return pa.schema([pa.field("key", pa.string(), nullable=False), *(pa.field(name, vector) for name in columns)])


def bank_schema(dim: int) -> pa.Schema:
    """The schema of a bank's file of one teacher."""
    vector = pa.list_(pa.field("element", pa.float16(), nullable=False), dim)
    return pa.schema([pa.field("label", pa.string(), nullable=False), pa.field("embedding", vector, nullable=False)])


def view_column(view: int) -> str:
    return f"view_{view:03d}"


def caption_column(caption: int) -> str:
    return f"caption_{caption:03d}"


@dataclass(frozen=True, order=True, slots=True)
class Signal:
    """What one model says about one thing: a folder of the dataset, one file a shard.

    `source` is the caption source of text embeddings: `original`, or a captioner's name. Of kind `modality` no model
    says anything: `model` is the modality's name.
    """

    kind: Literal["captions", "image", "text", "modality"]
    model: str
    source: str = ""

    @property
    def folder(self) -> str:
        if self.kind == "captions":
            return f"captions/{self.model}"
        if self.kind == "modality":
            return f"modalities/{self.model}"
        return (
            f"embeddings/{self.model}/image" if self.kind == "image" else f"embeddings/{self.model}/text/{self.source}"
        )

    def file(self, stem: str) -> str:
        return f"{self.folder}/{stem}.parquet"

    @classmethod
    def parse(cls, folder: str) -> "Signal":
        """The signal of a folder's path; raises `ValueError` for any other path."""
        match folder.split("/"):
            case ["captions", model]:
                return cls("captions", model)
            case ["modalities", model]:
                return cls("modality", model)
            case ["embeddings", model, "image"]:
                return cls("image", model)
            case ["embeddings", model, "text", source]:
                return cls("text", model, source)
        raise ValueError(f"{folder!r} is not a signal's folder, such as captions/NAME or embeddings/NAME/image")

    @classmethod
    def is_folder(cls, folder: str) -> bool:
        """Whether a path is that of a signal's folder."""
        return re.fullmatch(r"(captions|modalities)/[^/]+|embeddings/[^/]+/(image|text/[^/]+)", folder) is not None


def spine_file(stem: str) -> str:
    return f"samples/{stem}.parquet"


def failure_file(stem: str) -> str:
    return f"failures/{stem}.json"


def bank_folder(bank: str) -> str:
    return f"banks/{bank}"


def bank_file(bank: str, teacher: str) -> str:
    return f"{bank_folder(bank)}/{teacher}.parquet"


def corpus_stem(corpus: str, name: str) -> str:
    """What a file of sentences is called among shards, in selections, runs and failures; `name` is its path below the
    corpus's root without its suffixes. No shard of images may be called so."""
    return f"corpora/{corpus}/{name}"


def split_corpus_stem(stem: str) -> tuple[str, str]:
    """The corpus and the name of a file of sentences; raises `ValueError` for the stem of anything else."""
    match stem.split("/", 2):
        case ["corpora", corpus, name]:
            return corpus, name
    raise ValueError(f"{stem!r} is no file of sentences, such as corpora/NAME/00000")


def sentences_file(stem: str) -> str:
    """The spine of a file of sentences, `stem` being that of `corpus_stem`."""
    corpus, name = split_corpus_stem(stem)
    return f"corpora/{corpus}/sentences/{name}.parquet"


def corpus_embeddings_folder(corpus: str, teacher: str) -> str:
    return f"corpora/{corpus}/embeddings/{teacher}"


def corpus_embeddings_file(stem: str, teacher: str) -> str:
    """The embeddings of a file of sentences by a teacher, `stem` being that of `corpus_stem`."""
    corpus, name = split_corpus_stem(stem)
    return f"{corpus_embeddings_folder(corpus, teacher)}/{name}.parquet"


def canonical_json(content: Any) -> str:
    """JSON with one spelling: sorted keys, no spaces, non-ASCII as it is. What fingerprints and footers are made of."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(content: Any) -> str:
    """The sha256 of what decides a signal's content, as 64 hex digits."""
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def check_stem(stem: str) -> None:
    """Refuses a stem that would leave the dataset's folder when joined into a path."""
    parts = stem.split("/")
    if not stem or any(part in ("", ".", "..") for part in parts) or re.search(r"[\x00-\x1f\\]", stem):
        raise ValueError(f"shard stem {stem!r} cannot be a path below the dataset")


def round_mantissa(values: Float[np.ndarray, "*shape"], mantissa_bits: int) -> Float16[np.ndarray, "*shape"]:
    """Rounds float32 to float16 values with `mantissa_bits` of significand, to nearest, ties to even.

    The relative error is at most 2^-(mantissa_bits + 1) down to float16's smallest normal number, 6.1e-5; below it
    the absolute error is at most 3e-8. The dropped bits are zeros, which is what lets zstd shrink the column.
    """
    assert 1 <= mantissa_bits <= 10, mantissa_bits
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    dropped = np.uint32(23 - mantissa_bits)
    one = np.uint32(1)
    half_up = (one << (dropped - one)) - one + ((bits >> dropped) & one)
    rounded = ((bits + half_up) >> dropped) << dropped
    return rounded.view(np.float32).astype(np.float16)
