"""The captions of a reinforced dataset as a teacher embedded them, in place of a text tower.

They fit the teacher itself and every image tower that was trained in its space; no teacher is loaded. An image has the
captions of the row with its shard, its key and its sha256. Costs a few columns of each shard's files.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pyarrow.compute as pc
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from reinforce.config import ConfigError
from reinforce.evaluation.examples import Origin
from reinforce.evaluation.model import EmbeddingModel
from reinforce.shards.dataset import check_keys, open_dataset
from reinforce.shards.reader import FormatError, to_numpy
from reinforce.shards.schema import Signal, caption_column

ORIGINAL = "original"
"""The captions of the source, not those of a captioner."""


@dataclass(frozen=True)
class MatchedTexts:
    """Captions of images. `owners[i]` is the place of caption i's image among `images`, which are places of images that
    were to be matched; the others are counted in `drops`."""

    images: Int[np.ndarray, " images"]
    owners: Int[np.ndarray, " texts"]
    embeddings: Float[Tensor, "texts dim"]
    drops: Counter[str]
    counts: Counter[str]


@dataclass(frozen=True)
class _ShardTexts:
    """The kept samples of a shard: sha256 of the image, how many captions, and each caption's embedding, by column."""

    row_of: dict[str, int]
    sha256s: list[bytes | None]
    num_captions: list[int]
    columns: list[Float32[np.ndarray, "rows dim"]]


class StoredTexts:
    """The original captions of the reinforced dataset at `uri`. Raises `FormatError` if there is none."""

    def __init__(self, uri: str) -> None:
        self._dataset = open_dataset(uri)
        self.uri = uri
        self.source_root = str(self._dataset.document.get("source_root") or "")
        """Of the dataset: its shards are named from there."""

    def signal_for(self, model: EmbeddingModel, teacher: str | None = None) -> Signal:
        """The texts in the model's space: those of `teacher`, or of the first by name. Raises `ConfigError`."""
        signals = [s for s in self._dataset.signals if s.kind == "text" and s.source == ORIGINAL]
        if not signals:
            raise ConfigError(
                f"--texts {self.uri}: holds no embeddings of the source's captions; give a dataset that was built with "
                "source.captions and a max_captions above 0"
            )
        names = [signal.model for signal in signals]
        if teacher is not None and teacher not in names:
            raise ConfigError(
                f"--texts {self.uri}: its captions are embedded by {', '.join(names)}, not by {teacher}; name one of "
                "those with --teacher, or give another dataset"
            )
        for signal in signals:
            if teacher in (None, signal.model) and self.weights_sha256_of(signal) in model.space:
                return signal
        whose = teacher or ", ".join(names)
        why = "it has other weights" if model.has_text else "it was not trained from such weights"
        raise ConfigError(f"--texts {self.uri}: its captions are embedded by {whose}; {model.name}: {why}")

    def weights_sha256_of(self, signal: Signal) -> str | None:
        """Of the teacher that embedded the texts."""
        found: str | None = self._dataset.signals[signal]["content"].get("weights_sha256")
        return found

    def match(self, origins: Sequence[Origin], signal: Signal, most_captions: int) -> MatchedTexts:
        """The captions of images that come shard by shard, at most `most_captions` of each.

        Raises `ConfigError` for a shard that the dataset does not have, for an image that is another one there, and if
        no image has a caption.
        """
        drops, counts = Counter[str](), Counter[str]()
        images: list[int] = []
        owners: list[int] = []
        embeddings: list[Float32[np.ndarray, "texts dim"]] = []
        for stem, places in groupby(range(len(origins)), key=lambda place: origins[place].stem):
            shard = self._read(stem, signal, most_captions)
            rows: list[list[int]] = [[] for _ in shard.columns]
            of_rows: list[list[int]] = [[] for _ in shard.columns]
            for place in places:
                row = self._row_of(origins[place], shard)
                if row is None:
                    drops["not_in_texts"] += 1
                    continue
                counts["captions_over_bound"] += max(0, shard.num_captions[row] - len(shard.columns))
                wanted = range(min(shard.num_captions[row], len(shard.columns)))
                there = [column for column in wanted if np.isfinite(shard.columns[column][row]).all()]
                counts["null_embedding"] += len(wanted) - len(there)
                if not there:
                    drops["no_caption"] += 1
                    continue
                for column in there:
                    rows[column].append(row)
                    of_rows[column].append(len(images))
                images.append(place)
            for column, values in enumerate(shard.columns):
                embeddings.append(values[rows[column]])
                owners += of_rows[column]
        if not images:
            raise ConfigError(f"--texts {self.uri}: has a caption for none of the {len(origins):,} images")
        texts = torch.nn.functional.normalize(torch.from_numpy(np.concatenate(embeddings)), dim=1)
        return MatchedTexts(np.array(images), np.array(owners), texts, drops, counts)

    def _row_of(self, origin: Origin, shard: _ShardTexts) -> int | None:
        row = shard.row_of.get(origin.key)
        if row is not None and shard.sha256s[row] != origin.sha256:
            raise ConfigError(
                f"--texts {self.uri}: sample {origin.key} of shard {origin.stem} is another image there (sha256); "
                "give a dataset that was built of the shards that are evaluated"
            )
        return row

    def _read(self, stem: str, signal: Signal, most_captions: int) -> _ShardTexts:
        document = self._dataset.signals[signal]
        names = [caption_column(column) for column in range(min(most_captions, len(document["columns"])))]
        if stem not in self._dataset.stems or signal.file(stem) not in self._dataset.sizes:
            raise ConfigError(
                f"--texts {self.uri}: has no {signal.folder} of shard {stem}; give a dataset that was built of the "
                "shards that are evaluated"
            )
        with self._dataset.open_spine(stem) as file:
            spine = file.read(["key", "captions", "image_sha256", "drop_reason"])
            expected = {"stem": stem, "signal": signal.folder, "fingerprint": document["fingerprint"]}
            expected["source_sha256"] = file.footer["source_sha256"]
        spine = spine.filter(pc.is_null(spine.column("drop_reason")))
        with self._dataset.open(signal, stem) as file:
            for name, value in expected.items():
                if file.footer.get(name) != value:
                    found = file.footer.get(name)
                    raise FormatError(f"{file.path}: its {name} is {found}, not {value}: another file's")
            table = file.read(["key", *names])
        keys = spine.column("key").to_pylist()
        check_keys(keys, table.column("key").to_pylist(), signal.file(stem))
        return _ShardTexts(
            row_of={key: row for row, key in enumerate(keys)},
            sha256s=spine.column("image_sha256").to_pylist(),
            num_captions=pc.list_value_length(spine.column("captions")).to_pylist(),
            columns=[to_numpy(table.column(name)).astype(np.float32) for name in names],
        )
