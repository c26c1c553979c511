"""What the objects of the demo look like: each class as a few polygons in a unit square.

A part says where it is and which tone of the object's colour (or which fixed colour) fills it; nothing here knows
pixels. So another modality can paint the same outlines with heat or distance instead of colour.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Points = Float[np.ndarray, "points 2"]
"""Corners, x to the right and y down, in a square that runs from -0.5 to 0.5."""


@dataclass(frozen=True)
class Part:
    """A filled polygon; `tone` is `body`, `dark` or `light` (of the object's colour) or a fixed colour's name."""

    points: Points
    tone: str = "body"
    outlined: bool = True


def _ellipse(x: float, y: float, width: float, height: float | None = None, num_points: int = 40) -> Points:
    turn = np.linspace(0, 2 * np.pi, num_points, endpoint=False)
    height = width if height is None else height
    return np.stack([x + width / 2 * np.cos(turn), y + height / 2 * np.sin(turn)], axis=1)


def _box(left: float, top: float, right: float, bottom: float) -> Points:
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


def _corners(*corners: tuple[float, float]) -> Points:
    return np.array(corners)


def _circle() -> list[Part]:
    shine = Part(_ellipse(-0.15, -0.17, 0.22, 0.16), "light", outlined=False)
    return [Part(_ellipse(0, 0, 0.92)), shine]


def _square() -> list[Part]:
    return [Part(_box(-0.41, -0.41, 0.41, 0.41)), Part(_box(-0.41, 0.25, 0.41, 0.41), "dark", outlined=False)]


def _triangle() -> list[Part]:
    return [
        Part(_corners((0, -0.47), (0.5, 0.4), (-0.5, 0.4))),
        Part(_corners((0, -0.47), (0.5, 0.4), (0.12, 0.4)), "dark", outlined=False),
    ]


def _star() -> list[Part]:
    turn = np.arange(10) * np.pi / 5 - np.pi / 2
    radius = np.where(np.arange(10) % 2 == 0, 0.52, 0.22)
    return [Part(np.stack([radius * np.cos(turn), radius * np.sin(turn) + 0.03], axis=1))]


def _heart() -> list[Part]:
    turn = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    x = 16 * np.sin(turn) ** 3
    y = -(13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn))
    return [
        Part(np.stack([x / 34, y / 34 - 0.04], axis=1)),
        Part(_ellipse(-0.22, -0.2, 0.16, 0.12), "light", outlined=False),
    ]


def _cross() -> list[Part]:
    arm = [(-0.16, -0.16), (-0.16, -0.47), (0.16, -0.47)]
    quarter_turns = [np.array([[1, 0], [0, 1]]), np.array([[0, -1], [1, 0]])]
    quarter_turns += [-turn for turn in quarter_turns]
    return [Part(np.concatenate([np.array(arm) @ turn.T for turn in quarter_turns]))]


def _ring() -> list[Part]:
    def annulus(outer: float, inner: float) -> Points:
        rims = [_ellipse(0, 0, outer), _ellipse(0, 0, inner)[::-1]]
        return np.concatenate([part for rim in rims for part in (rim, rim[:1])])

    return [
        Part(annulus(0.96, 0.48), "dark", outlined=False),
        Part(annulus(0.91, 0.53), "body", outlined=False),
        Part(annulus(0.76, 0.7), "light", outlined=False),
    ]


def _house() -> list[Part]:
    return [
        Part(_box(0.18, -0.42, 0.3, -0.1), "dark"),
        Part(_box(-0.36, -0.08, 0.36, 0.45)),
        Part(_corners((0, -0.5), (0.48, -0.06), (-0.48, -0.06)), "dark"),
        Part(_box(-0.26, 0.04, -0.08, 0.22), "lamp"),
        Part(_box(0.06, 0.1, 0.24, 0.45), "wood"),
    ]


def _tree() -> list[Part]:
    return [
        Part(_box(-0.08, 0.1, 0.08, 0.5), "wood"),
        Part(_ellipse(-0.2, 0.0, 0.46, 0.44)),
        Part(_ellipse(0.2, 0.0, 0.46, 0.44)),
        Part(_ellipse(0, -0.2, 0.56, 0.56)),
        Part(_ellipse(0, -0.02, 0.42, 0.34), outlined=False),
        Part(_ellipse(-0.1, -0.27, 0.2, 0.16), "light", outlined=False),
    ]


def _car() -> list[Part]:
    return [
        Part(_corners((-0.3, 0.02), (-0.19, -0.25), (0.17, -0.25), (0.32, 0.02))),
        Part(_corners((-0.21, 0.0), (-0.14, -0.18), (-0.02, -0.18), (-0.02, 0.0)), "glass"),
        Part(_corners((0.03, 0.0), (0.03, -0.18), (0.13, -0.18), (0.23, 0.0)), "glass"),
        Part(_corners((-0.5, 0.22), (-0.48, 0.02), (0.42, 0.0), (0.5, 0.08), (0.5, 0.22))),
        Part(_ellipse(-0.27, 0.22, 0.24), "tyre"),
        Part(_ellipse(0.27, 0.22, 0.24), "tyre"),
        Part(_ellipse(-0.27, 0.22, 0.1), "glass", outlined=False),
        Part(_ellipse(0.27, 0.22, 0.1), "glass", outlined=False),
    ]


def _fish() -> list[Part]:
    return [
        Part(_corners((0.18, 0), (0.5, -0.26), (0.43, 0), (0.5, 0.26)), "dark"),
        Part(_corners((-0.1, -0.18), (0.05, -0.38), (0.16, -0.14)), "dark"),
        Part(_ellipse(-0.1, 0, 0.76, 0.48)),
        Part(_corners((-0.02, 0.02), (0.14, -0.08), (0.14, 0.14)), "dark", outlined=False),
        Part(_ellipse(-0.3, -0.06, 0.11), "cloth", outlined=False),
        Part(_ellipse(-0.31, -0.06, 0.06), "tyre", outlined=False),
    ]


def _boat() -> list[Part]:
    return [
        Part(_box(-0.02, -0.48, 0.02, 0.2), "wood"),
        Part(_corners((0.04, -0.46), (0.04, 0.12), (0.4, 0.12)), "cloth"),
        Part(_corners((-0.04, -0.36), (-0.04, 0.12), (-0.3, 0.12)), "cloth"),
        Part(_corners((-0.5, 0.18), (0.5, 0.18), (0.34, 0.46), (-0.34, 0.46))),
        Part(_corners((-0.42, 0.32), (0.42, 0.32), (0.34, 0.46), (-0.34, 0.46)), "dark", outlined=False),
    ]


_DRAWINGS: dict[str, Callable[[], list[Part]]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "cross": _cross,
    "ring": _ring,
    "house": _house,
    "tree": _tree,
    "car": _car,
    "fish": _fish,
    "boat": _boat,
}

PARTS: dict[str, tuple[Part, ...]] = {name: tuple(drawing()) for name, drawing in _DRAWINGS.items()}
"""Class name -> its parts, back to front. The order of the names is the class index."""

CLASSES = tuple(PARTS)
