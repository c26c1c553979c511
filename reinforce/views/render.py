"""The pixels of a view: crop and resize, flip, then the operations in order. Of a further modality, without those that
change colours.

Part of the dataset format, because stored embeddings depend on the pixels. Resizing is bicubic (a = -1/2) with
antialiasing: torch's kernel for 8-bit channels-last images where the crop lies on whole pixels, Pillow's where its
edges are fractions of a pixel or a very long image would have to be resized whole. The two agree to the last grey level
nearly everywhere. About 0.4 ms for a 224-pixel view of a 640 x 480 image, a third of it resizing; thread safe.
"""

import numpy as np
import torch
from PIL import Image

from reinforce.sample import RGB, Box, Pixels, View, ViewOp
from reinforce.views.draw import GEOMETRIC_OPS
from reinforce.views.ops import apply_op

MAX_ASPECT_RATIO_RESIZED_WHOLE = 4
"""The clean view of a longer image is resized by Pillow, which computes only what the centre crop keeps: a line of
60,000 pixels would be blown up to 9 GB otherwise."""


def render(image: RGB, view: View, size: int) -> Pixels:
    """The view as `size` x `size` pixels, in memory of its own.

    The clean view is torchvision's Resize(size, bicubic, antialias) of the whole image, then CenterCrop(size). An
    augmented view is the part of the image inside the box, to which no pixel outside contributes, resized to `size` x
    `size`, flipped if the view says so, and put through its operations.

    The image may be a scaled copy of the one the box was drawn for, with the sides off by less than a pixel; the box
    scales as an exact fraction of the image. Raises ValueError if it has another aspect ratio, naming both sizes.
    """
    height, width = image.shape[:2]
    if view.box is not None and not matches(view.box, width, height):
        raise ValueError(
            f"the view was drawn for an image of {view.box.image_width} x {view.box.image_height} pixels; "
            f"an image of {width} x {height} has another aspect ratio"
        )
    pixels = _render_clean(image, size) if view.box is None else _render_box(image, view.box, size)
    return _finish(pixels, view.hflip, view.ops)


def render_modality(image: RGB, view: View, size: int, rgb_size: tuple[int, int]) -> Pixels:
    """The view of a further modality of a sample, registered with its RGB image of `rgb_size` (width, height).

    It shows the part of the scene that `render` shows of the RGB image, clean views too: the box is that fraction of
    the modality, whatever its size. It is flipped and its pixels are moved alike; operations on colours are left out.
    Where both have one aspect ratio, these are the pixels of `render` for the view without those operations.
    """
    height, width = image.shape[:2]
    ops = tuple(op for op in view.ops if op.name in GEOMETRIC_OPS)
    rgb_width, rgb_height = rgb_size
    if view.box is None and matches(Box(0, 0, rgb_height, rgb_width, rgb_width, rgb_height), width, height):
        pixels = _render_clean(image, size)
    else:
        pixels = _render_box(image, view.box or _clean_box(rgb_width, rgb_height, size), size)
    return _finish(pixels, view.hflip, ops)


def matches(box: Box, image_width: int, image_height: int) -> bool:
    """Whether an image of this size has the aspect ratio of the one that `box` was drawn for.

    True if one factor takes both sides of that image to less than a pixel from these, whatever the rounding was.
    """
    return (image_width - 1) * box.image_height < (image_height + 1) * box.image_width and (
        image_height - 1
    ) * box.image_width < (image_width + 1) * box.image_height


def _finish(pixels: Pixels, hflip: bool, ops: tuple[ViewOp, ...]) -> Pixels:
    if hflip:
        pixels = np.ascontiguousarray(pixels[:, ::-1])
    for op in ops:
        pixels = apply_op(pixels, op)
    return pixels


def _clean_box(width: int, height: int, size: int) -> Box:
    """What the clean view keeps, in pixels of the image of `width` x `height` as it is resized."""
    short, long = min(height, width), max(height, width)
    # Both roundings, of the long side and of the crop's corner (half to even), are torchvision's.
    resized_long = int(size * long / short)
    corner = round((resized_long - size) / 2.0)
    if height > width:
        return Box(corner, 0, size, size, size, resized_long)
    return Box(0, corner, size, size, resized_long, size)


def _render_clean(image: RGB, size: int) -> Pixels:
    height, width = image.shape[:2]
    box = _clean_box(width, height, size)
    if max(height, width) <= MAX_ASPECT_RATIO_RESIZED_WHOLE * min(height, width):
        resized = _resize(image, box.image_height, box.image_width)
        return np.ascontiguousarray(resized[box.top : box.top + size, box.left : box.left + size])
    pixels_per_row, pixels_per_column = height / box.image_height, width / box.image_width
    kept = (
        box.left * pixels_per_column,
        box.top * pixels_per_row,
        min((box.left + size) * pixels_per_column, width),
        min((box.top + size) * pixels_per_row, height),
    )
    return _resize_part(image, kept, size)


def _render_box(image: RGB, box: Box, size: int) -> Pixels:
    height, width = image.shape[:2]
    # Edges in pixels of this image, exact: whole units of 1 / box.image_width and 1 / box.image_height.
    unit_x, unit_y = box.image_width, box.image_height
    left, right = box.left * width, (box.left + box.width) * width
    top, bottom = box.top * height, (box.top + box.height) * height
    first_x, stop_x = left // unit_x, -(-right // unit_x)
    first_y, stop_y = top // unit_y, -(-bottom // unit_y)
    crop = image[first_y:stop_y, first_x:stop_x]
    if not (left % unit_x or right % unit_x or top % unit_y or bottom % unit_y):
        return _resize(crop, size, size)
    part = (
        (left - first_x * unit_x) / unit_x,
        (top - first_y * unit_y) / unit_y,
        (right - first_x * unit_x) / unit_x,
        (bottom - first_y * unit_y) / unit_y,
    )
    return _resize_part(crop, part, size)


def _resize(image: RGB, height: int, width: int) -> RGB:
    """The whole of `image` at another size, by torch."""
    if image.strides[1:] != (3, 1) or not image.flags.writeable:
        # torch warns about memory it may not write to.
        image = np.require(image, requirements=["C_CONTIGUOUS", "WRITEABLE"])
    rows, columns, row_bytes = image.shape[0], image.shape[1], image.strides[0]
    # Only with the stride that a second image would have does torch see channels-last, and answer in kind: what it
    # answers in planes takes longer to put together again than to resize.
    channels_last = torch.from_numpy(image).as_strided((1, 3, rows, columns), (rows * row_bytes, 1, row_bytes, 3))
    resized = torch.nn.functional.interpolate(channels_last, size=(height, width), mode="bicubic", antialias=True)
    return np.ascontiguousarray(resized.squeeze(0).permute(1, 2, 0).numpy())


def _resize_part(image: RGB, part: tuple[float, float, float, float], size: int) -> Pixels:
    """The part (left, top, right, bottom) of `image`, in fractional pixels, as `size` x `size` pixels, by Pillow."""
    resized = Image.fromarray(np.ascontiguousarray(image)).resize((size, size), Image.Resampling.BICUBIC, box=part)
    return np.array(resized)
