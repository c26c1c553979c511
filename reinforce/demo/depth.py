"""Paints a scene as a depth camera registered with the other one sees it: millimetres from the camera, in 16 bits.

A thing's outlines and parts show, its colours do not. The ground or the wall behind it is uneven and slopes; distances
are as noisy as such cameras', and unknown (0) beside edges and in a few patches. About 1 ms an image.
"""

import numpy as np
from jaxtyping import Bool, Float, UInt16
from PIL import Image, ImageDraw

from reinforce.demo.painting import place
from reinforce.demo.scenes import PATTERNS, Scene, Thing
from reinforce.demo.shapes import PARTS

NEAREST_MM, FARTHEST_MM = 500, 5000
"""Between these lies every distance that is known."""

_OVERSAMPLING = 3
_RELIEF_MM = 40
_EDGE_MM = 100
_NOISE_MM = 2.5

Distances = Float[np.ndarray, "height width"]


def render_depth(scene: Scene, size: tuple[int, int]) -> UInt16[np.ndarray, "height width"]:
    """Distances in mm, 0 where there is none, in an image of `size` = (width, height).

    Whatever the size, it shows what `render_scene` shows in one of the same aspect ratio.
    """
    rng = np.random.default_rng([scene.texture_seed, 1])
    distances = _background(scene, *size, rng)
    for thing in scene.things[::-1]:
        _put(thing, distances, rng)
    # The error of a depth camera grows with the square of the distance.
    noise = rng.standard_normal(distances.shape) * _NOISE_MM * (distances / 1000) ** 2
    measured = np.clip(np.rint(distances + noise), NEAREST_MM, FARTHEST_MM)
    depth: UInt16[np.ndarray, "height width"] = (measured * ~_holes(distances, rng)).astype(np.uint16)
    return depth


def _background(scene: Scene, width: int, height: int, rng: np.random.Generator) -> Distances:
    """A wall that stands at an angle, or ground that comes nearer towards the lower edge."""
    x, y = np.linspace(-0.5, 0.5, width)[None, :], np.linspace(-0.5, 0.5, height)[:, None]
    middle = rng.uniform(2000, 3500)
    lean_x, lean_y = rng.uniform(-0.2, 0.2, size=2)
    if scene.background not in PATTERNS:
        lean_y = -0.5
    surface: Distances = middle * (1 + lean_x * x + lean_y * y)
    for _ in range(3):
        (turns_x, turns_y), phase = rng.uniform(-2, 2, size=2), rng.uniform(0, 2 * np.pi)
        surface += rng.uniform(10, 60) * np.sin(2 * np.pi * (turns_x * x + turns_y * y) + phase)
    return surface


def _put(thing: Thing, distances: Distances, rng: np.random.Generator) -> None:
    """Puts a thing in front of what is there; its later parts lie nearer, as they were put on."""
    height, width = distances.shape
    canvas = Image.new("L", (width * _OVERSAMPLING, height * _OVERSAMPLING))
    draw = ImageDraw.Draw(canvas)
    for number, part in enumerate(PARTS[thing.kind]):
        draw.polygon(list(map(tuple, place(part.points, thing, *canvas.size).tolist())), fill=number + 1)
    # One of each square of pixels: a mean would put edges where nothing is.
    part_numbers = np.asarray(canvas)[_OVERSAMPLING // 2 :: _OVERSAMPLING, _OVERSAMPLING // 2 :: _OVERSAMPLING]
    covered = part_numbers > 0
    if not covered.any():  # in an image of a few pixels
        return
    front = distances[covered].min() - rng.uniform(100, 500)
    distances[covered] = front - _RELIEF_MM * (part_numbers[covered] - 1.0)


def _holes(distances: Distances, rng: np.random.Generator) -> Bool[np.ndarray, "height width"]:
    """Half of the pixels at the left of what stands far out, where the projector's light does not reach; patches."""
    height, width = distances.shape
    step = np.diff(distances, axis=1, append=distances[:, -1:])
    holes: Bool[np.ndarray, "height width"] = (step < -_EDGE_MM) & (rng.random(distances.shape) < 0.5)
    y, x = np.mgrid[:height, :width]
    for _ in range(rng.integers(0, 6)):
        at_x, at_y, radius = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0.01, 0.05) * min(width, height)
        holes |= (x - at_x) ** 2 + (y - at_y) ** 2 < radius**2
    return holes
