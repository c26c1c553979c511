"""The images of source shards with a label or captions beside them, decoded and rendered ahead of the model.

Local shards are read where they lie, remote ones downloaded one ahead to a temporary folder. At most a few batches of
images exist between a tar and the model; rendered images are kept for the next pass if all of them fit `cache_bytes`.
"""

import hashlib
import os
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float

from reinforce.config import ConfigError, ModalityConfig, SourceConfig
from reinforce.decode import decode, decode_modality
from reinforce.evaluation.examples import EmbeddedImages, Example, Facts, Origin, Skipped
from reinforce.evaluation.model import EmbeddingModel
from reinforce.formatting import format_counts
from reinforce.sample import RGB, Box, Drop, DropReason, NullReason, Pixels, Sample, View
from reinforce.selection import Selection, read_selection
from reinforce.shards.source import ShardError, SourceShard
from reinforce.storage import ShardRef, find_shards
from reinforce.views.render import render

CACHE_BYTES = 512 << 20
BATCH_SIZE = 64

_MOST_CAPTIONS = 999
_MOST_DIGITS = 10
_MODALITY = "modality"
"""Whatever the modality is called elsewhere."""


class ShardImages:
    """Images of labelled or captioned shards, for one model after another. Reads listings at once, tars when asked.

    `root` is the source root's URI, by default that of the folder that holds all shards. `counts` says what was left
    out short of a whole sample; it is complete after a pass. With `modality` the images are a sample's members of its
    suffix in place of the RGB ones, by its range, and the clean view is their own; `needs` rgb gives both. With `needs`
    origin or `with_origins` each tells where it is from. Raises `ConfigError` for a selection that no shard has a part
    in, and for a shard that is not a whole tar.
    """

    def __init__(
        self,
        uris: str | Sequence[str],
        *,
        needs: Literal["label", "labels", "captions", "rgb", "origin"],
        select: str | None = None,
        field_name: str = "txt",
        max_captions: int = 5,
        workers: int | None = None,
        cache_bytes: int = CACHE_BYTES,
        modality: ModalityConfig | None = None,
        root: str | None = None,
        with_origins: bool = False,
    ) -> None:
        self.root, refs = find_shards([uris] if isinstance(uris, str) else uris, root)
        self.counts: Counter[str] = Counter()
        self._selection = read_selection(select) if select else None
        self._refs = _selected(refs, self._selection)
        self._needs = needs
        self._with_origins = with_origins or needs == "origin"
        self._max_captions = max_captions
        self._modality = modality
        self._source = _source_config(field_name if needs in ("labels", "captions") else None, needs, modality)
        self._workers = workers or max(1, len(os.sched_getaffinity(0)) - 1)
        self._cache_bytes = cache_bytes
        self._cached: list[Example | Skipped] | None = None
        self._cached_for: tuple[int, bool] | None = None

    @property
    def uris(self) -> list[str]:
        """Of the shards."""
        return [ref.uri for ref in self._refs]

    def embed(self, model: EmbeddingModel, batch_size: int = BATCH_SIZE) -> EmbeddedImages:
        """One pass of a model over the images; the caller puts it into evaluation mode."""
        found = EmbeddedImages(torch.empty(0, 0))
        rows: list[Float[torch.Tensor, "rows dim"]] = []
        of_rgb: list[Float[torch.Tensor, "rows dim"]] = []
        batch: list[Example] = []

        def embed_batch() -> None:
            rows.append(model.embed_images(np.stack([example.pixels for example in batch])))
            rgb = [example.rgb for example in batch if example.rgb is not None]
            of_rgb.extend([model.embed_images(np.stack(rgb))] if rgb else [])
            batch.clear()

        with closing(self.examples(model.image_size, squashes=model.squashes)) as examples:
            for example in examples:
                if isinstance(example, Skipped):
                    found.drops[example.reason] += 1
                    continue
                found.facts.append(example.facts)
                batch.append(example)
                if len(batch) == batch_size:
                    embed_batch()
        if batch:
            embed_batch()
        if not rows:
            raise ConfigError(self._nothing_usable(found.drops))
        found.embeddings = torch.cat(rows)
        found.rgb = torch.cat(of_rgb) if of_rgb else None
        return found

    def examples(self, size: int, *, squashes: bool = False) -> Generator[Example | Skipped, None, None]:
        """Every sample once, in source order, at this image size."""
        if self._cached is not None and self._cached_for == (size, squashes):
            yield from self._cached
            return
        self._cached = None
        kept: list[Example | Skipped] | None = []
        num_bytes = 0
        for example in self._render_ahead(size, squashes):
            if isinstance(example, Example):
                num_bytes += example.pixels.nbytes * (2 if example.rgb is not None else 1)
            if num_bytes > self._cache_bytes:
                kept = None
            if kept is not None:
                kept.append(example)
            yield example
        self._cached, self._cached_for = kept, (size, squashes)

    def _render_ahead(self, size: int, squashes: bool) -> Iterator[Example | Skipped]:
        depth = 2 * BATCH_SIZE + self._workers
        pending: deque[Future[Example | Skipped]] = deque()
        pool = ThreadPoolExecutor(self._workers, "decode", initializer=torch.set_num_threads, initargs=(1,))
        try:
            for stem, sample in self._samples():
                pending.append(pool.submit(self._render, stem, sample, self._facts(sample), size, squashes))
                if len(pending) > depth:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _samples(self) -> Iterator[tuple[str, Sample]]:
        self.counts = Counter()
        with TemporaryDirectory(prefix="reinforce-evaluate-") as spool, ThreadPoolExecutor(1, "fetch") as fetcher:
            coming = fetcher.submit(_fetch, self._refs[0], Path(spool) / "0.tar")
            for index, (ref, following) in enumerate(zip_longest(self._refs, self._refs[1:]), start=1):
                path = coming.result()
                if following is not None:
                    coming = fetcher.submit(_fetch, following, Path(spool) / f"{index}.tar")
                yield from ((ref.stem, sample) for sample in self._read(ref, path))
                if path.parent == Path(spool):
                    path.unlink()

    def _read(self, ref: ShardRef, path: Path) -> Iterator[Sample]:
        selected = self._selection.keys(ref.stem) if self._selection else None
        try:
            source = SourceShard(path, self._source)
            yield from source.samples(selected=selected, with_labels=self._needs == "label")
        except ShardError as error:
            raise ConfigError(f"shard {ref.uri} {error}; mend it or leave it out") from None
        self.counts.update(+source.counts)

    def _facts(self, sample: Sample) -> Facts | Skipped:
        needs_rgb = self._modality is None or self._needs == "rgb"
        if sample.drop is not None and (needs_rgb or sample.drop.reason != DropReason.MISSING_IMAGE):
            return Skipped(sample.drop.reason)
        if self._modality is not None and _MODALITY not in sample.modalities:
            return Skipped(NullReason.NO_MODALITY)
        if self._needs == "captions":
            captions = self._captions(sample)
            return Facts(captions=captions) if captions else Skipped("no_caption")
        if self._needs == "labels":
            return Facts(captions=sample.captions) if sample.captions else Skipped("missing_label")
        if self._needs in ("rgb", "origin"):
            return Facts()
        if sample.label is None:
            return Skipped("missing_label")
        label = parse_label(sample.label)
        return Skipped("bad_label") if label is None else Facts(label)

    def _render(
        self, stem: str, sample: Sample, facts: Facts | Skipped, size: int, squashes: bool
    ) -> Example | Skipped:
        if isinstance(facts, Skipped):
            return facts
        modality, limit = self._modality, self._source.max_pixels
        images = [decode_modality(sample.modalities[_MODALITY], modality.range, limit)] if modality else []
        if modality is None or self._needs == "rgb":
            images.append(decode(sample.image, limit))
        views = []
        for image in images:
            if isinstance(image, Drop):
                return Skipped(image.reason)
            views.append(_clean_view(image, size, squashes))
        if self._with_origins:
            data = sample.modalities[_MODALITY] if modality else sample.image
            facts = replace(facts, origin=Origin(stem, sample.key, hashlib.sha256(data).digest()))
        return Example(views[0], facts, *views[1:])

    def _captions(self, sample: Sample) -> tuple[str, ...]:
        captions = list(sample.captions)
        if self._source.captions == ("txt",):
            # CLIP_benchmark writes all captions of an image into one text file, one a line.
            captions = [line.strip() for text in captions for line in text.splitlines() if line.strip()]
        self.counts["captions_over_bound"] += max(0, len(captions) - self._max_captions)
        return tuple(captions[: self._max_captions])

    def _nothing_usable(self, drops: Counter[str]) -> str:
        left_out = drops - Counter(not_selected=drops["not_selected"])
        if not left_out:
            return f"--select: none of its keys is in the shards of {self.root}"
        if self._modality is not None and left_out.keys() == {NullReason.NO_MODALITY}:
            return f"no sample of {self.root} has a .{self._modality.suffix} member; give the suffix of its modality"
        if left_out.keys() == {"missing_label"} and self._needs == "labels":
            return f"no sample of {self.root} has labels in {self._source.captions[0]}: pass --labels json.FIELD"
        if left_out.keys() == {"missing_label"}:
            return f"no sample of {self.root} has a .cls member; give labelled shards"
        if left_out.keys() == {"no_caption"}:
            return f"no sample of {self.root} has a caption in {self._source.captions[0]}: pass --captions json.FIELD"
        return f"no sample of {self.root} can be used: {format_counts(left_out)}"


def parse_label(data: bytes) -> int | None:
    """The integer of a `.cls` member, None if it is none."""
    text = data.strip()
    return int(text) if text.removeprefix(b"-").isdigit() and len(text) < _MOST_DIGITS else None


def _source_config(field_name: str | None, needs: str, modality: ModalityConfig | None) -> SourceConfig:
    captions = () if field_name is None else (field_name,)
    modalities = {_MODALITY: modality.suffix} if modality else {}
    try:
        return SourceConfig(captions=captions, max_captions=_MOST_CAPTIONS, modalities=modalities)
    except ValueError:
        raise ConfigError(f"--{needs} {field_name}: give txt or json.FIELD") from None


def _selected(refs: list[ShardRef], selection: Selection | None) -> list[ShardRef]:
    if selection is None:
        return refs
    stems = set(selection.stems)
    if not stems:
        raise ConfigError("--select: the selection is empty")
    kept = [ref for ref in refs if ref.stem in stems]
    if not kept:
        few = ", ".join(sorted(stems)[:3])
        raise ConfigError(f"--select: none of its stems ({few}) is among the shards ({refs[0].stem}, ...)")
    return kept


def _fetch(ref: ShardRef, target: Path) -> Path:
    local = ref.store.local_path(ref.path)
    if local is None:
        ref.store.download(ref.path, target, size=ref.size)
    return local or target


def _clean_view(image: RGB, size: int, squashes: bool) -> Pixels:
    height, width, _ = image.shape
    whole = Box(0, 0, height, width, width, height)
    return render(image, View(whole if squashes else None), size)
