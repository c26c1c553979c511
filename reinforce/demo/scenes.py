"""Generated scenes: what is in them, drawn from a seed, apart from how they are painted.

A `Scene` says which things lie where on which background, in fractions of the image's shorter side, so one scene can
be painted at any size and aspect ratio, or in another modality. `draw_scene` is a pure function of its seed. Seeds
below `TRAINING_SEEDS` are for data; the models in `models/` were trained and measured on seeds from there on.
"""

from dataclasses import dataclass

import numpy as np

from reinforce.demo.shapes import CLASSES

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 38, 38),
    "orange": (245, 128, 30),
    "yellow": (250, 212, 46),
    "green": (38, 158, 68),
    "blue": (42, 88, 222),
    "purple": (130, 58, 182),
    "pink": (247, 132, 184),
    "white": (246, 246, 242),
}

# Colours that would be hard to see on a background.
_HIDDEN: dict[str, tuple[str, ...]] = {
    "sky": ("white",),
    "grass": ("green",),
    "sand": ("yellow",),
    "night": ("blue",),
    "water": ("blue",),
    "snow": ("white",),
    "checkers": ("white",),
    "stripes": ("white",),
    "dots": ("white",),
    "wall": ("white",),
}
BACKGROUNDS = tuple(_HIDDEN)
PATTERNS = ("checkers", "stripes", "dots", "wall")
"""Backgrounds that have a tint; the others have their natural colours."""

TRAINING_SEEDS = 1 << 40
"""First seed of the scenes that the demo's models were trained on."""


@dataclass(frozen=True, slots=True)
class Thing:
    """An object: its middle (from the image's middle) and size in units of the shorter side, its angle in degrees."""

    kind: str
    colour: str
    x: float
    y: float
    size: float
    angle: float
    mirrored: bool


@dataclass(frozen=True, slots=True)
class Scene:
    """One or two things on a background; the first is the main one, which gives the class.

    `relation` says where the main thing is, seen from the second one; `texture_seed` fixes clouds, waves and noise.
    """

    things: tuple[Thing, ...]
    relation: str
    background: str
    tint: str
    light: float
    texture_seed: int

    @property
    def class_index(self) -> int:
        return CLASSES.index(self.things[0].kind)


_DIRECTIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}


def draw_scene(seed: int) -> Scene:
    """The scene of a seed: every class, colour and background about equally often, a second thing in 2 of 5."""
    rng = np.random.default_rng(seed)
    background = str(rng.choice(BACKGROUNDS))
    colours = [colour for colour in COLOURS if colour not in _HIDDEN[background]]
    main_colour, other_colour, tint = (str(name) for name in rng.choice(colours, size=3, replace=False))
    kinds = [str(name) for name in rng.choice(CLASSES, size=2, replace=False)]
    things: tuple[Thing, ...]
    if rng.random() < 0.4:
        relation, things = _draw_pair(rng, (kinds[0], main_colour), (kinds[1], other_colour))
    else:
        size = rng.uniform(0.32, 0.76)
        reach = 0.52 - 0.58 * size
        x, y = rng.uniform(-reach, reach, size=2)
        relation, things = "", (_thing(rng, kinds[0], main_colour, x, y, size),)
    tint = tint if background in PATTERNS else ""
    return Scene(things, relation, background, tint, rng.uniform(0.9, 1.08), int(rng.integers(2**31)))


def _draw_pair(
    rng: np.random.Generator, main: tuple[str, str], other: tuple[str, str]
) -> tuple[str, tuple[Thing, Thing]]:
    """Two things side by side or one above the other, centred together, that do not overlap."""
    relation = str(rng.choice(list(_DIRECTIONS)))
    along = np.array(_DIRECTIONS[relation])
    main_size, other_size = rng.uniform(0.38, 0.58), rng.uniform(0.22, 0.34)
    extent = main_size + other_size + 0.03
    across = along[::-1] * rng.uniform(-0.15, 0.15, size=(2, 1))
    main_xy = along * (extent - main_size) / 2 + across[0]
    other_xy = -along * (extent - other_size) / 2 + across[1]
    first = _thing(rng, *main, main_xy[0], main_xy[1], main_size)
    return relation, (first, _thing(rng, *other, other_xy[0], other_xy[1], other_size))


def _thing(rng: np.random.Generator, kind: str, colour: str, x: float, y: float, size: float) -> Thing:
    angle, mirrored = rng.uniform(-16, 16), rng.random() < 0.5
    return Thing(kind, colour, float(x), float(y), float(size), angle, bool(mirrored))
