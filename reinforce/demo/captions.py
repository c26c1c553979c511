"""What is said about a scene: right captions in varied words, and the noise that web captions have.

`describe` and `truth` never lie. `draw_noisy_caption` does in a known proportion and says so, which lets later work
measure how well a score finds the wrong captions.
"""

import re
from dataclasses import dataclass

import numpy as np

from reinforce.demo.scenes import Scene, Thing, draw_scene

SYNONYMS: dict[str, tuple[str, ...]] = {
    "circle": ("disc", "ball"),
    "square": ("block",),
    "triangle": ("pyramid",),
    "star": (),
    "heart": (),
    "cross": ("plus sign",),
    "ring": ("hoop",),
    "house": ("cottage",),
    "tree": (),
    "car": ("automobile",),
    "fish": (),
    "boat": ("sailboat",),
}
"""Other words for each class, used in a quarter of the captions."""

_PLACES: dict[str, tuple[str, ...]] = {
    "sky": ("in the sky", "in a blue sky with clouds", "against a cloudy sky"),
    "grass": ("on grass", "on the green grass", "in a meadow"),
    "sand": ("on sand", "on a sandy beach", "in the desert"),
    "night": ("at night", "under the stars", "in a dark starry sky"),
    "water": ("on water", "on blue water", "in the sea with waves"),
    "snow": ("in the snow", "on white snow", "on a snowy day"),
    "checkers": ("on {tint} checkers", "on {a tint} checkerboard"),
    "stripes": ("on {tint} stripes", "on {a tint} striped background"),
    "dots": ("on {tint} dots", "on {a tint} dotted background"),
    "wall": ("on a plain {tint} background", "in front of {a tint} wall"),
}
_RELATIONS: dict[str, tuple[str, ...]] = {
    "left of": ("left of", "to the left of", "next to"),
    "right of": ("right of", "to the right of", "beside"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
TEMPLATES = ("a photo of a {}.", "a drawing of a {}", "the {}")
"""Prompts for zero-shot classification, of which a class has the mean."""

_FRAMES = (
    "{}",
    "{}",
    "{}",
    "a photo of {}",
    "a picture of {}",
    "an image of {}",
    "a drawing of {}",
    "a close up of {}",
    "there is {}",
    "we see {}",
    "look, {}",
    "my favourite: {}",
)
_JUNK = ("IMG_{n:04d}.jpg", "DSC{n:05d}", "untitled ({n})", "image {n}", "click to enlarge", "photo for sale, item {n}")

NOISE_SHARES: dict[str, float] = {
    "right": 0.55,
    "terse": 0.10,
    "junk": 0.06,
    "wrong": 0.18,
    "missing": 0.08,
    "empty": 0.015,
    "undecodable": 0.015,
}
"""Kinds of web caption and how often each occurs. `right` and `terse` are true, `wrong` is of another scene."""


@dataclass(frozen=True, slots=True)
class NoisyCaption:
    """A caption as the web has it: the bytes of the `.txt` member (None: there is none) and what is wrong with it."""

    text: bytes | None
    noise: str


def truth(scene: Scene) -> str:
    """Everything a caption can say about a scene, always in the same words."""
    main, *others = [_with_article(f"{_size_word(thing)} {thing.colour} {thing.kind}") for thing in scene.things]
    relation = f" {scene.relation} {others[0]}" if others else ""
    return f"{main}{relation} {_fill_tint(_PLACES[scene.background][-1], scene.tint)}"


def describe(scene: Scene, rng: np.random.Generator) -> str:
    """A right caption in varied words: the main thing, mostly its colour, often the place and the second thing."""
    words = _name_thing(scene.things[0], rng, size_share=0.4, colour_share=0.88)
    if len(scene.things) > 1 and rng.random() < 0.8:
        relation = str(rng.choice([*_RELATIONS[scene.relation], "and"]))
        words += f" {relation} {_name_thing(scene.things[1], rng, size_share=0.3, colour_share=0.8)}"
    if rng.random() < 0.75:
        words += " " + _fill_tint(str(rng.choice(_PLACES[scene.background])), scene.tint)
    caption = str(rng.choice(_FRAMES)).format(words)
    return caption + ("." if rng.random() < 0.2 else "")


def describe_class(kind: str, rng: np.random.Generator) -> str:
    """A caption that names nothing but the class, as prompts for zero-shot classification do."""
    noun = str(rng.choice((kind, *SYNONYMS[kind]))) if rng.random() < 0.2 else kind
    article = str(rng.choice(("a {}", "a {}", "the {}", "{}"))).format(noun)
    return str(rng.choice(_FRAMES)).format(article) + ("." if rng.random() < 0.3 else "")


def draw_noisy_caption(scene: Scene, rng: np.random.Generator) -> NoisyCaption:
    """The caption that a web page would have beside the scene."""
    noise = str(rng.choice(list(NOISE_SHARES), p=list(NOISE_SHARES.values())))
    if noise == "missing":
        return NoisyCaption(None, noise)
    if noise == "undecodable":
        return NoisyCaption(describe(scene, rng).encode("utf-16") + b"\xff\xfe\xff", noise)
    text = {
        "right": lambda: describe(scene, rng),
        "terse": lambda: str(rng.choice(["{}", "a {}", "the {}"])).format(scene.things[0].kind),
        "junk": lambda: str(rng.choice(_JUNK)).format(n=rng.integers(10_000)),
        "wrong": lambda: describe(_draw_other_scene(scene, rng), rng),
        "empty": lambda: str(rng.choice(["", " \n"])),
    }[noise]()
    return NoisyCaption(text.encode(), noise)


def names(caption: str, thing: Thing, *, with_colour: bool = False) -> bool:
    """Whether a caption has the thing's noun or a synonym of it, and right before it its colour if that is asked."""
    nouns = "|".join((thing.kind, *SYNONYMS[thing.kind]))
    return re.search(rf"\b{thing.colour + ' ' if with_colour else ''}({nouns})\b", caption) is not None


def _draw_other_scene(scene: Scene, rng: np.random.Generator) -> Scene:
    shown = {thing.kind for thing in scene.things}
    while True:
        other = draw_scene(int(rng.integers(2**40)))
        if shown.isdisjoint(thing.kind for thing in other.things):
            return other


def _name_thing(thing: Thing, rng: np.random.Generator, size_share: float, colour_share: float) -> str:
    noun = thing.kind
    if SYNONYMS[thing.kind] and rng.random() < 0.25:
        noun = str(rng.choice(SYNONYMS[thing.kind]))
    colour = thing.colour if rng.random() < colour_share else ""
    size = _size_word(thing, rng) if rng.random() < size_share else ""
    return _with_article(f"{size} {colour} {noun}")


def _size_word(thing: Thing, rng: np.random.Generator | None = None) -> str:
    """Empty for a middling thing."""
    words: tuple[str, ...] = ("",) if thing.size > 0.42 else ("small", "little", "tiny")
    words = ("big", "large", "huge") if thing.size > 0.6 else words
    return str(rng.choice(words)) if rng else words[0]


def _fill_tint(place: str, tint: str) -> str:
    return place.replace("{a tint}", _with_article(tint)).replace("{tint}", tint)


def _with_article(words: str) -> str:
    words = " ".join(words.split())
    return f"{'an' if words[:1] in tuple('aeiou') else 'a'} {words}"
