"""Paints a scene in RGB: a textured background, the things with a soft shadow, light and a little sensor noise.

Drawn at three times the size and reduced, because Pillow's polygons are not antialiased: about 3 ms an image.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

from reinforce.demo.scenes import COLOURS, PATTERNS, Scene, Thing
from reinforce.demo.shapes import CLASSES, PARTS, Part, Points

Colour = tuple[int, int, int]
Ink = tuple[int, int, int, int]
_OVERSAMPLING = 3
_FIXED: dict[str, Colour] = {
    "wood": (116, 78, 46),
    "tyre": (38, 38, 44),
    "glass": (206, 230, 246),
    "cloth": (252, 248, 238),
    "lamp": (255, 236, 150),
}


def render_scene(scene: Scene, size: int | tuple[int, int]) -> Image.Image:
    """The scene as an RGB image of `size` = side or (width, height); all things lie within the central square."""
    width, height = (size, size) if isinstance(size, int) else size
    rng = np.random.default_rng(scene.texture_seed)
    canvas = _paint_background(scene, width * _OVERSAMPLING, height * _OVERSAMPLING, rng)
    for thing in scene.things[::-1]:
        _paint_thing(canvas, thing)
    small = np.asarray(canvas.reduce(_OVERSAMPLING), np.float32)
    noise = rng.standard_normal((height, width, 1), np.float32) * np.float32(rng.uniform(0.5, 4.0))
    return Image.fromarray(np.clip(small * np.float32(scene.light) + noise, 0, 255).astype(np.uint8))


def render_classes(scene: Scene, size: tuple[int, int]) -> Image.Image:
    """The class index plus 1 of the thing that covers each pixel, 0 where there is none."""
    canvas = Image.new("L", size)
    draw = ImageDraw.Draw(canvas)
    for thing in scene.things[::-1]:
        for part in PARTS[thing.kind]:
            draw.polygon(_corners(place(part.points, thing, *size)), fill=1 + CLASSES.index(thing.kind))
    return canvas


def place(points: Points, thing: Thing, width: int, height: int) -> Points:
    """A part's corners in the pixels of an image of that size."""
    turn = np.deg2rad(thing.angle)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    mirror = np.array([-1.0 if thing.mirrored else 1.0, 1.0])
    centre = np.array([width / 2, height / 2]) + min(width, height) * np.array([thing.x, thing.y])
    placed: Points = (points * mirror) @ rotation.T * (thing.size * min(width, height)) + centre
    return placed


def _paint_thing(canvas: Image.Image, thing: Thing) -> None:
    draw = ImageDraw.Draw(canvas, "RGBA")
    offset = 0.05 * thing.size * min(canvas.size)
    for part in PARTS[thing.kind]:
        shadow = place(part.points, thing, *canvas.size) + offset
        draw.polygon(_corners(shadow), fill=(20, 20, 40, 46))
    body = COLOURS[thing.colour]
    ink = _mix(body, (20, 20, 30), 0.62)
    stroke = max(2, round(0.024 * thing.size * min(canvas.size)))
    for part in PARTS[thing.kind]:
        corners = _corners(place(part.points, thing, *canvas.size))
        draw.polygon(corners, fill=_tone(part, body))
        if part.outlined:
            draw.line([*corners, corners[0], corners[1]], fill=ink, width=stroke, joint="curve")


def _tone(part: Part, body: Colour) -> Colour:
    if part.tone in _FIXED:
        return _FIXED[part.tone]
    mixed = {"body": (body, 0.0), "dark": ((20, 20, 30), 0.28), "light": ((255, 255, 255), 0.55)}
    other, amount = mixed[part.tone]
    return _mix(body, other, amount)


def _mix(colour: Colour, other: Colour, amount: float) -> Colour:
    red, green, blue = (round((1 - amount) * a + amount * b) for a, b in zip(colour, other, strict=True))
    return red, green, blue


def _corners(points: Points) -> list[tuple[float, float]]:
    return list(map(tuple, points.tolist()))


def _paint_background(scene: Scene, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    if scene.background in PATTERNS:
        base = _mix(COLOURS[scene.tint], (236, 236, 236), 0.62)
        canvas = _gradient(base, _mix(base, (90, 90, 100), 0.22), width, height)
    else:
        canvas = _gradient(*_NATURE[scene.background], width, height)
    if scene.background in _DETAILS:
        _DETAILS[scene.background](canvas, ImageDraw.Draw(canvas, "RGBA"), rng)
    return canvas


_NATURE: dict[str, tuple[Colour, Colour]] = {
    "sky": ((92, 164, 232), (196, 226, 246)),
    "grass": ((120, 182, 84), (72, 138, 52)),
    "sand": ((236, 214, 160), (210, 176, 112)),
    "night": ((14, 18, 52), (48, 46, 96)),
    "water": ((58, 150, 190), (22, 92, 148)),
    "snow": ((214, 226, 240), (240, 244, 250)),
}


def _gradient(top: Colour, bottom: Colour, width: int, height: int) -> Image.Image:
    weights = np.linspace(0, 1, height)[:, None, None]
    column: Float[np.ndarray, "height 1 3"] = np.array(top) * (1 - weights) + np.array(bottom) * weights
    return Image.fromarray(column.round().astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)


def _spot(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, ink: Ink) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)


def _sky(canvas: Image.Image, draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    unit = min(canvas.size)
    for _ in range(rng.integers(2, 5)):
        x, y = rng.uniform(0, canvas.width), rng.uniform(0, canvas.height * 0.8)
        for _ in range(5):
            puff = rng.uniform(0.06, 0.13) * unit
            at_x, at_y = x + rng.normal(0, 0.09) * unit, y + rng.normal(0, 0.02) * unit
            corners = (at_x - puff * 1.5, at_y - puff * 0.7, at_x + puff * 1.5, at_y + puff * 0.7)
            draw.ellipse(corners, fill=(255, 255, 255, 120))


def _grass(canvas: Image.Image, draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    unit = min(canvas.size)
    for x, y, lean, shade in zip(*rng.random((4, 260)), strict=True):
        foot = (x * canvas.width, y * canvas.height)
        tip = (foot[0] + (lean - 0.5) * 0.05 * unit, foot[1] - (0.03 + 0.05 * y) * unit)
        ink = (40 + int(90 * shade), 110 + int(90 * shade), 40, 170)
        draw.line([foot, tip], fill=ink, width=max(2, unit // 90))


def _sand(canvas: Image.Image, draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    _waves(canvas, draw, rng, (168, 132, 80, 90), rows=7, swell=0.02)
    for x, y, shade in zip(*rng.random((3, 300)), strict=True):
        ink = (int(255 * shade), int(215 * shade), 120, 90)
        _spot(draw, x * canvas.width, y * canvas.height, min(canvas.size) / 190, ink)


def _night(canvas: Image.Image, draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    for x, y, glow in zip(*rng.random((3, 60)), strict=True):
        radius, ink = min(canvas.size) * (0.003 + 0.006 * glow), (255, 250, 225, 120 + int(130 * glow))
        _spot(draw, x * canvas.width, y * canvas.height, radius, ink)


def _water(canvas: Image.Image, draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    _waves(canvas, draw, rng, (226, 246, 255, 110), rows=9, swell=0.012)


def _waves(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, rng: np.random.Generator, ink: Ink, rows: int, swell: float
) -> None:
    x = np.linspace(0, canvas.width, 48)
    for y in (np.arange(rows) + rng.random(rows)) / rows * canvas.height:
        phase, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.18, 0.4) * min(canvas.size)
        crest = y + swell * min(canvas.size) * np.sin(2 * np.pi * x / length + phase)
        draw.line(_corners(np.stack([x, crest], axis=1)), fill=ink, width=max(2, min(canvas.size) // 70))


def _snow(canvas: Image.Image, draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    x = np.linspace(0, canvas.width, 32)
    crest = canvas.height * (0.62 + 0.06 * np.sin(x / canvas.width * rng.uniform(4, 9) + rng.uniform(0, 6)))
    hill = [*_corners(np.stack([x, crest], axis=1)), canvas.size, (0, canvas.height)]
    draw.polygon(hill, fill=(250, 252, 255, 255))
    for at_x, at_y, glow in zip(*rng.random((3, 70)), strict=True):
        radius = min(canvas.size) * (0.006 + 0.008 * glow)
        _spot(draw, at_x * canvas.width, at_y * canvas.height, radius, (255, 255, 255, 230))


def _checkers(canvas: Image.Image, draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    side = min(canvas.size) / rng.uniform(4.5, 8)
    for row in range(int(canvas.height / side) + 1):
        for column in range(row % 2, int(canvas.width / side) + 1, 2):
            corners = (column * side, row * side, (column + 1) * side, (row + 1) * side)
            draw.rectangle(corners, fill=(255, 255, 255, 120))


def _stripes(canvas: Image.Image, draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    step, lean = min(canvas.size) / rng.uniform(5, 9), rng.uniform(-1.2, 1.2) * canvas.height
    for x in np.arange(-abs(lean), canvas.width + abs(lean), 2 * step):
        foot = [(x + step + lean, canvas.height), (x + lean, canvas.height)]
        draw.polygon([(x, 0), (x + step, 0), *foot], fill=(255, 255, 255, 120))


def _dots(canvas: Image.Image, draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    step = min(canvas.size) / rng.uniform(6, 10)
    for row, y in enumerate(np.arange(step / 2, canvas.height, step)):
        for x in np.arange(step / 2 + step / 2 * (row % 2), canvas.width, step):
            _spot(draw, x, y, step * 0.22, (255, 255, 255, 150))


_DETAILS: dict[str, Callable[[Image.Image, ImageDraw.ImageDraw, np.random.Generator], None]] = {
    "sky": _sky,
    "grass": _grass,
    "sand": _sand,
    "night": _night,
    "water": _water,
    "snow": _snow,
    "checkers": _checkers,
    "stripes": _stripes,
    "dots": _dots,
}
