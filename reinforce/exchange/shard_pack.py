"""One shard of a dataset as a tar of the published layout: images, captions, views and embeddings, with no join left.

Signals are read a row group at a time, images one by one. An image that is not made smaller keeps its bytes.
"""

import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float16

from reinforce.config import SourceConfig, ViewPolicy
from reinforce.exchange.layout import (
    CLEAN_ROWS,
    IMAGE_ROWS,
    TEXT_ROWS,
    Rows,
    escape_key,
    format_views,
    write_npz,
    write_pth,
)
from reinforce.exchange.notes import Notes, NotesWriter, member_info
from reinforce.exchange.pictures import Picture, pack_picture, scaled_edges
from reinforce.plan import ORIGINAL
from reinforce.sample import Drop
from reinforce.shard_report import ShardReport
from reinforce.shards.dataset import Dataset, check_keys
from reinforce.shards.explicit import BoxOutsideError, ExplicitView, Size, read_sizes, read_views, views_file
from reinforce.shards.reader import FormatError, ShardFile, to_numpy
from reinforce.shards.schema import Signal, view_column
from reinforce.shards.source import Member, SourceShard
from reinforce.views.draw import draw
from reinforce.views.render import matches

Column = Float16[np.ndarray, "rows dim"]


class _LeftOutError(Exception):
    """A sample that is not packed, and why."""


def pack_shard(
    dataset: Dataset, stem: str, tar: Path, notes: Notes, spool: Path, *, max_pixels: int
) -> tuple[Path, ShardReport]:
    """Writes the packed tar of one shard to the spool; `tar` is its source, a local file.

    Raises `ShardError` or `FormatError` if source and dataset do not belong together. A sample that lacks what the
    layout needs of it is left out, counted by reason in `drops`.
    """
    with dataset.open_spine(stem) as file:
        spine, footer = file.read(), file.footer
    members = SourceShard(tar, SourceConfig.model_validate(notes.dataset["spine"]["source"])).images()
    report = ShardReport(stem, num_samples=spine.num_rows, drops=Counter(footer["drops"]), num_files=1)
    kept = spine.filter(pc.is_null(spine.column("drop_reason")))
    packed = spool / "packed.tar"
    with tar.open("rb") as source, tarfile.open(packed, "w", format=tarfile.PAX_FORMAT) as target:
        about = {"stem": stem, "source_sha256": footer["source_sha256"]}
        writer = NotesWriter(target, {**notes.document, **about})
        for block in _blocks(dataset, stem, kept, notes, footer["source_sha256"]):
            for row, key in enumerate(block.keys):
                try:
                    picture = _picture(source, members.get(key), block, row, notes, max_pixels)
                    found = block.members(row, picture, notes)
                except _LeftOutError as reason:
                    report.drops[str(reason)] += 1
                    continue
                for suffix, data in found.items():
                    target.addfile(member_info(f"{escape_key(key)}.{suffix}", len(data)), io.BytesIO(data))
                report.num_kept += 1
                report.counts["encoded_again"] += picture.is_encoded_again
    left_out = dict(sorted((+report.drops).items()))
    writer.finish(packed, {"num_samples": report.num_kept, "left_out": left_out})
    report.num_bytes = packed.stat().st_size
    return packed, report


def _picture(source: Any, member: Member | None, block: "_Block", row: int, notes: Notes, max_pixels: int) -> Picture:
    if member is None:
        raise _LeftOutError("missing_image")
    source.seek(member.offset)
    data = source.read(member.num_bytes)
    sha256 = block.rows[row]["image_sha256"]
    if sha256 is not None and hashlib.sha256(data).digest() != sha256:
        raise _LeftOutError("image_mismatch")
    found = pack_picture(data, max_pixels, notes.document["shortest_side"])
    if isinstance(found, Drop):
        raise _LeftOutError(found.reason)
    return found


@dataclass(frozen=True)
class _Block:
    """The kept samples of one row group, with all that the signals say of them."""

    rows: list[dict[str, Any]]
    captions: dict[str, list[list[str]]]
    """By source, the original ones first, then captioners in their order."""
    images: dict[str, dict[str, Column]]
    texts: dict[str, dict[str, list[Column]]]
    """By source, then by teacher."""
    stored_views: tuple[list[Size | None], list[list[ExplicitView | None]]] | None
    """Of datasets that store them: the size of each row's image, and each view's column."""
    policy: ViewPolicy | None

    @property
    def keys(self) -> list[str]:
        return [row["key"] for row in self.rows]

    def members(self, row: int, picture: Picture, notes: Notes) -> dict[str, bytes]:
        """The members of one sample by suffix; raises `_LeftOutError` if it lacks something."""
        original, *synthetic = [self.captions[source][row] for source in self.captions]
        if not original:
            raise _LeftOutError("no_original_caption")
        if not all(synthetic):
            raise _LeftOutError("no_synthetic_caption")
        identity: dict[str, Any] = {"uid": self.rows[row]["key"], "sha256": hashlib.sha256(picture.data).hexdigest()}
        num_captions = {name: len(texts) for name, texts in zip(notes.captioners, synthetic, strict=True)}
        syn = {"syn_text": [text for texts in synthetic for text in texts], "num_captions": num_captions}
        write = write_npz if notes.document["embeddings"] == "npz" else write_pth
        return {
            picture.suffix: picture.data,
            "txt": original[0].encode(),
            "json": _json(identity | {"captions": original}),
            "syn.json": _json(syn),
            "paug.json": _json(self._views(row, picture, notes.num_views)),
            notes.document["embeddings"]: write(self._arrays(row, notes)),
        }

    def _views(self, row: int, picture: Picture, num_views: int) -> dict[str, Any]:
        """`paug.json`: boxes in pixels of the packed image, and, where that is another size, the exact ones."""
        facts, size = self.rows[row], picture.size
        if self.policy is not None:
            of_size = (facts["image_width"], facts["image_height"])
            seed = facts["view_seed"]
            views = [_drawn(self.policy, seed, index, of_size) for index in range(1, num_views + 1)]
        else:
            assert self.stored_views is not None
            sizes, columns = self.stored_views
            known = sizes[row]
            if known is None and picture.was_turned:
                raise _LeftOutError("views_do_not_fit")
            of_size = known or picture.size_before
            stored = [column[row] for column in columns[:num_views]]
            views = [view for view in stored if view is not None]
            if len(views) < num_views:
                raise _LeftOutError("no_view")
        try:
            boxes = [view.of(of_size).box for view in views]
        except BoxOutsideError:
            raise _LeftOutError("views_do_not_fit") from None
        if not all(box is not None and matches(box, *size) for box in boxes):
            raise _LeftOutError("image_mismatch")
        if of_size == size:
            return {"param_aug": format_views(views), "view_seed": facts["view_seed"]}
        return {
            "param_aug": format_views([_scaled(view, of_size, size) for view in views]),
            "view_seed": facts["view_seed"],
            "image_width": of_size[0],
            "image_height": of_size[1],
            "boxes": [[view.top, view.left, view.height, view.width] for view in views],
        }

    def _arrays(self, row: int, notes: Notes) -> dict[str, Rows]:
        teachers = list(notes.widths)
        indices = range(1, notes.num_views + 1)
        arrays = {
            IMAGE_ROWS: [[self.images[name][view_column(index)][row] for name in teachers] for index in indices],
            TEXT_ROWS: self._text_rows(row, teachers),
        }
        if notes.has_clean:
            arrays[CLEAN_ROWS] = [[self.images[name][view_column(0)][row] for name in teachers]]
        width = sum(notes.widths.values())
        found = {}
        for name, rows in arrays.items():
            joined = [np.concatenate(parts) for parts in rows]
            found[name] = np.array(joined, np.float32) if joined else np.empty((0, width), np.float32)
            if np.isnan(found[name]).any():
                raise _LeftOutError("null_embedding")
        return found

    def _text_rows(self, row: int, teachers: list[str]) -> list[list[Column]]:
        """The first original caption, the synthetic ones, the other original ones: as readers of the layout expect."""
        by_source = [
            [[self.texts[source][name][caption][row] for name in teachers] for caption in range(len(captions[row]))]
            for source, captions in self.captions.items()
        ]
        original, *synthetic = by_source
        return [original[0], *(rows for of_source in synthetic for rows in of_source), *original[1:]]


def _blocks(dataset: Dataset, stem: str, kept: pa.Table, notes: Notes, source_sha256: str) -> Iterator[_Block]:
    """The kept samples a row group at a time, every signal's rows checked against the spine's."""
    policy = notes.dataset["view_policy"]
    with ExitStack() as stack:
        files = {signal: stack.enter_context(dataset.open(signal, stem)) for signal in notes.signals}
        views = None if policy else stack.enter_context(ShardFile(dataset.store, views_file(stem)))
        for file in (*files.values(), *([views] if views else [])):
            if file.footer.get("source_sha256") != source_sha256 or file.num_rows != kept.num_rows:
                raise FormatError(f"{file.path}: not of the same source, or of other rows than its spine")
        groups = {signal: file.read_groups() for signal, file in files.items()}
        view_groups = views.read_groups() if views else None
        start = 0
        while start < kept.num_rows:
            tables = {signal: next(rows) for signal, rows in groups.items()}
            num_rows = next(iter(tables.values())).num_rows
            part = kept.slice(start, num_rows)
            keys = part.column("key").to_pylist()
            for signal, table in tables.items():
                check_keys(keys, table.column("key").to_pylist(), signal.file(stem))
            stored = None
            if view_groups is not None:
                table = next(view_groups)
                check_keys(keys, table.column("key").to_pylist(), views_file(stem))
                stored = read_sizes(table), [read_views(table.column(name)) for name in table.column_names[3:]]
            yield _block(part, tables, stored, ViewPolicy.model_validate(policy) if policy else None, notes)
            start += num_rows


def _block(
    part: pa.Table, tables: dict[Signal, pa.Table], stored: Any, policy: ViewPolicy | None, notes: Notes
) -> _Block:
    captions = {ORIGINAL: part.column("captions").to_pylist()}
    for name in notes.captioners:
        lists = tables[Signal("captions", name)].column("captions").to_pylist()
        captions[name] = [texts or [] for texts in lists]
    images = {
        name: {column: to_numpy(tables[Signal("image", name)].column(column)) for column in notes.columns}
        for name in notes.widths
    }
    texts: dict[str, dict[str, list[Column]]] = {}
    for source in captions:
        of_source = {name: tables[Signal("text", name, source)] for name in notes.widths}
        texts[source] = {
            name: [to_numpy(table.column(column)) for column in table.column_names[1:]]
            for name, table in of_source.items()
        }
    columns = ["key", "image_width", "image_height", "image_sha256", "view_seed"]
    return _Block(part.select(columns).to_pylist(), captions, images, texts, stored, policy)


def _drawn(policy: ViewPolicy, seed: int, index: int, size: Size) -> ExplicitView:
    view = draw(policy, seed, index, *size)
    assert view.box is not None
    assert not view.hflip
    return ExplicitView(view.box.top, view.box.left, view.box.height, view.box.width, view.ops)


def _scaled(view: ExplicitView, of_size: Size, size: Size) -> ExplicitView:
    left, width = scaled_edges(view.left, view.width, of_size[0], size[0])
    top, height = scaled_edges(view.top, view.height, of_size[1], size[1])
    return ExplicitView(top, left, height, width, view.ops)


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
