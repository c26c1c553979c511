"""Which view a stored embedding is of: drawn again from the sample's seed, or read where a dataset stores its views.

Whoever shows or trains on views asks here, so that both see what the teacher saw.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from reinforce.config import ViewPolicy
from reinforce.sample import View
from reinforce.shards.dataset import Dataset, check_keys
from reinforce.shards.explicit import BoxOutsideError, ExplicitView, Size, read_sizes, read_views, views_file
from reinforce.shards.reader import FormatError, ShardFile
from reinforce.shards.schema import view_column
from reinforce.views.draw import draw
from reinforce.views.render import matches


class ImageMismatchError(ValueError):
    """An image that is not the one its sample's signals were made from."""


class Views(Protocol):
    """The views of a visit's rows."""

    def lacks(self, row: int, index: int) -> bool:
        """Whether this row has no view `index`."""

    def recorded_size(self, row: int) -> Size | None:
        """Of this row's image, upright; None if it is not known: its boxes are in pixels as the image stores them."""

    def view(self, row: int, index: int, size: Size) -> View:
        """View `index` of a row whose image, upright, is of this size; raises `ImageMismatchError` if there is none."""


@dataclass(frozen=True)
class DrawnViews:
    """Views by policy and seed, drawn for the size the image had when the dataset was built."""

    policy: ViewPolicy
    seeds: Sequence[int]
    sizes: Sequence[Size]

    def lacks(self, row: int, index: int) -> bool:
        return False

    def recorded_size(self, row: int) -> Size | None:
        return self.sizes[row]

    def view(self, row: int, index: int, size: Size) -> View:
        return _checked(draw(self.policy, self.seeds[row], index, *self.sizes[row]), size)


@dataclass(frozen=True)
class ExplicitViews:
    """Views as they are stored, of an image of the size that is stored beside them, or of the one at hand."""

    sizes: Sequence[Size | None]
    columns: Mapping[int, Sequence[ExplicitView | None]]
    """View index -> the view of each row. View 0 is the clean one and is not among them."""

    def lacks(self, row: int, index: int) -> bool:
        return index > 0 and self.columns[index][row] is None

    def recorded_size(self, row: int) -> Size | None:
        return self.sizes[row]

    def view(self, row: int, index: int, size: Size) -> View:
        if index == 0:
            return View(box=None)
        stored = self.columns[index][row]
        if stored is None:
            raise ImageMismatchError(f"view {index} is not stored for this sample")
        try:
            return _checked(stored.of(self.sizes[row] or size), size)
        except BoxOutsideError as error:
            raise ImageMismatchError(f"view {index}: {error}") from None


def drawn_views(policy: ViewPolicy, kept: pa.Table) -> DrawnViews:
    """The views of the kept rows of a spine, whose columns `view_seed` and sizes are in `kept`."""
    sizes = zip(kept.column("image_width").to_pylist(), kept.column("image_height").to_pylist(), strict=True)
    return DrawnViews(policy, kept.column("view_seed").to_pylist(), list(sizes))


def read_explicit_views(
    dataset: Dataset, stem: str, keys: list[str], source_sha256: str, indices: Sequence[int]
) -> ExplicitViews:
    """The stored views of a shard's kept rows, only those asked for; raises `FormatError`."""
    wanted = [index for index in indices if index > 0]
    with ShardFile(dataset.store, views_file(stem)) as file:
        for name, value in {"stem": stem, "kind": "views", "source_sha256": source_sha256}.items():
            if file.footer.get(name) != value:
                raise FormatError(f"{file.path}: its {name} is {file.footer.get(name)}, not {value}: another file's")
        table = file.read(["key", "image_width", "image_height", *map(view_column, wanted)])
        check_keys(keys, table.column("key").to_pylist(), file.path)
    return ExplicitViews(read_sizes(table), {index: read_views(table.column(view_column(index))) for index in wanted})


def _checked(view: View, size: Size) -> View:
    box = view.box
    if box is not None and not matches(box, *size):
        width, height = size
        raise ImageMismatchError(
            f"an image of {width} x {height} pixels, its views were drawn for {box.image_width} x {box.image_height}"
        )
    return view
