"""Views that are stored instead of drawn: `views/<stem>.parquet` of imported datasets, one column a view.

The box is in whole pixels of an image whose size is stored beside it, so it is an exact fraction; where the size is not
known, in pixels of whatever image comes, which must hold it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from reinforce.sample import Box, View, ViewOp
from reinforce.shards.schema import view_column

EXPLICIT = "explicit"
"""What `dataset.json` says in `views` where they are stored."""

IMPORTED = "imported"
"""The kind of a model that is known by what it said only."""

MAX_NORM_ERROR = 0.01
"""Of imported rows: bfloat16 moves the norm of a unit vector by up to 0.004, and others may not have been exact."""

Size = tuple[int, int]
"""Width and height in pixels."""

_OP = pa.struct([pa.field("name", pa.string(), nullable=False), pa.field("value", pa.float64(), nullable=False)])
_VIEW = pa.struct(
    [
        *(pa.field(name, pa.int32(), nullable=False) for name in ("top", "left", "height", "width")),
        pa.field("ops", pa.list_(pa.field("element", _OP, nullable=False)), nullable=False),
    ]
)


class BoxOutsideError(ValueError):
    """A box that reaches beyond the image it is to be cut from."""


@dataclass(frozen=True, slots=True)
class ExplicitView:
    """A view by its parameters: a crop in whole pixels, then operations with the values of `ViewOp`. No flip."""

    top: int
    left: int
    height: int
    width: int
    ops: tuple[ViewOp, ...] = ()

    def of(self, size: Size) -> View:
        """The view of an image of this size; raises `BoxOutsideError` if the box is not within it."""
        width, height = size
        is_inside = self.top + self.height <= height and self.left + self.width <= width
        if not is_inside or min(self.top, self.left) < 0 or min(self.height, self.width) < 1:
            raise BoxOutsideError(
                f"the box {self.width} x {self.height} at ({self.left}, {self.top}) is not within {width} x {height}"
            )
        return View(Box(self.top, self.left, self.height, self.width, width, height), ops=self.ops)


def views_file(stem: str) -> str:
    return f"views/{stem}.parquet"


def views_schema(num_views: int) -> pa.Schema:
    """The schema of an explicit views file: key, size of the image the boxes are in pixels of, views 1..`num_views`."""
    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("image_width", pa.int32()),
            pa.field("image_height", pa.int32()),
            *(pa.field(view_column(view), _VIEW) for view in range(1, num_views + 1)),
        ]
    )


def views_batch(
    keys: Sequence[str], sizes: Sequence[Size | None], views: Sequence[Sequence[ExplicitView]], num_views: int
) -> pa.RecordBatch:
    """Rows of an explicit views file; a sample with fewer than `num_views` has nulls in the rest."""
    rows = []
    for key, size, of_sample in zip(keys, sizes, views, strict=True):
        width, height = size or (None, None)
        row: dict[str, Any] = {"key": key, "image_width": width, "image_height": height}
        for number, view in enumerate(of_sample[:num_views], start=1):
            row[view_column(number)] = {
                "top": view.top,
                "left": view.left,
                "height": view.height,
                "width": view.width,
                "ops": [{"name": op.name, "value": op.value} for op in view.ops],
            }
        rows.append(row)
    return pa.RecordBatch.from_pylist(rows, views_schema(num_views))


def read_sizes(table: pa.Table) -> list[Size | None]:
    """The size of each row's image, None where it is not known."""
    pairs = zip(table.column("image_width").to_pylist(), table.column("image_height").to_pylist(), strict=True)
    return [None if width is None or height is None else (width, height) for width, height in pairs]


def read_views(column: pa.ChunkedArray) -> list[ExplicitView | None]:
    """A view column as nouns."""
    return [
        None
        if cell is None
        else ExplicitView(
            cell["top"],
            cell["left"],
            cell["height"],
            cell["width"],
            tuple(ViewOp(op["name"], op["value"]) for op in cell["ops"]),
        )
        for cell in column.to_pylist()
    ]
