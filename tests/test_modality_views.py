"""Views of a further modality show what the RGB view shows, whatever its size, and keep their own colours."""

import numpy as np
import pytest

from reinforce.config import ViewPolicy
from reinforce.sample import Box, View, ViewOp
from reinforce.views.draw import GEOMETRIC_OPS, OP_NAMES, draw
from reinforce.views.render import render, render_modality
from tests.scenes import gradient

RGB_SIZE = (240, 180)
CLEAN = View(box=None)
VALUES = {"Posterize": 4.0, "Solarize": 100.0, "Rotate": 20.0}
"""Of operations whose value is not a share."""
SHOWN_AREA = {"scale": (0.1, 1.0)}


def op(name: str) -> ViewOp:
    return ViewOp(name, VALUES.get(name, 0.25))


@pytest.mark.parametrize("rgb_size", [RGB_SIZE, (180, 240), (500, 100)])
@pytest.mark.parametrize("size", [(480, 360), (360, 270), (120, 90), (300, 300), (90, 400)])
def test_the_same_part_of_the_scene_at_any_size(rgb_size: tuple[int, int], size: tuple[int, int]) -> None:
    rgb, other = gradient(*rgb_size), gradient(*size)
    policy = ViewPolicy.model_validate({"hflip": 0.5, "photometric": False, **SHOWN_AREA})
    for index in range(12):
        view = draw(policy, 5, index, *rgb_size)
        wanted, found = render(rgb, view, 64), render_modality(other, view, 64, rgb_size)
        # A pixel of the view, or one of the coarser image at its edge, and the rounding of both.
        one_pixel = 255 * max(1 / 64, 1 / min(*size, *rgb_size)) + 1
        assert np.abs(wanted.astype(int) - found).max() <= one_pixel, index


@pytest.mark.parametrize("size", [RGB_SIZE, (480, 360), (360, 270), (121, 90)])
def test_with_one_aspect_ratio_the_pixels_are_those_of_render(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    ops = tuple(op(name) for name in ("ShearX", "Rotate", "TranslateY"))
    box = Box(31, 47, 90, 101, *RGB_SIZE)
    for view in (CLEAN, View(None, True, ops), View(box), View(box, True, ops)):
        np.testing.assert_array_equal(render_modality(image, view, 48, RGB_SIZE), render(image, view, 48))


@pytest.mark.parametrize("name", OP_NAMES)
def test_operations_that_move_pixels_apply_and_those_on_colours_do_not(name: str) -> None:
    image = gradient(300, 180)
    box = Box(10, 20, 100, 120, *RGB_SIZE)
    plain = render_modality(image, View(box), 48, RGB_SIZE)
    found = render_modality(image, View(box, ops=(op(name),)), 48, RGB_SIZE)
    if name in GEOMETRIC_OPS:
        moved = render(plain, View(Box(0, 0, 48, 48, 48, 48), ops=(op(name),)), 48)
        np.testing.assert_array_equal(found, moved)
        assert (found != plain).any()
    else:
        np.testing.assert_array_equal(found, plain)


def test_a_sliver_of_a_tiny_image_renders() -> None:
    view = View(Box(0, 0, 1, 1, 4000, 3000))
    assert (render_modality(np.full((2, 3, 3), 7, np.uint8), view, 16, (4000, 3000)) == 7).all()
