"""The first samples of a published set: how many views and captions it has, and whether the widths given are its own.

A wrong width is the same for every sample, so it is found before anything is written: the share of a unit vector that
a wrong cut takes is no unit vector.
"""

from collections import Counter
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from reinforce.config import ConfigError
from reinforce.exchange.layout import Rows, source_config
from reinforce.exchange.notes import read_notes
from reinforce.exchange.outline import ImportedTeacher, ImportOutline, outline_of_notes
from reinforce.exchange.samples import PublishedSample, parse_sample
from reinforce.sample import Drop
from reinforce.shards.explicit import MAX_NORM_ERROR
from reinforce.shards.source import ShardError, SourceShard

CAPTIONER = "datacompdr"
"""What the synthetic captions of published tars are called, if the user does not say."""

NUM_PEEKED = 64

LEARNED_SCALE = 100.0
"""At which most CLIP models end: the bound of their learned logit scale."""


def peek(tar: Path, widths: Mapping[str, int], scales: Mapping[str, float], captioner: str | None) -> ImportOutline:
    """The outline of the import of which this is the first tar.

    Raises `ConfigError` if `widths` (teacher -> width, in order) are not those of the data or the tar says itself what
    is given, `ShardError` if it holds no usable sample.
    """
    notes = read_notes(tar)
    if notes is not None:
        outline = outline_of_notes(notes)
        expected = [(teacher.name, teacher.dim) for teacher in outline.teachers]
        if widths and list(widths.items()) != expected:
            says = ", ".join(f"{name}={dim}" for name, dim in expected)
            raise ConfigError(f"--dims: these tars are of `reinforce pack` and say {says} themselves; leave it out")
        for option, is_given in (("--logit-scale", bool(scales)), ("--captioner", captioner is not None)):
            if is_given:
                raise ConfigError(f"{option}: these tars are of `reinforce pack` and say it themselves; leave it out")
        return outline
    source = source_config(("txt",), 1)
    drops: list[Drop] = []
    found: list[PublishedSample] = []
    for sample in SourceShard(tar, source).samples():
        parsed = parse_sample(sample, source.max_pixels, Counter(), width=None)
        if isinstance(parsed, Drop):
            drops.append(parsed)
        else:
            found.append(parsed)
        if len(found) == NUM_PEEKED:
            break
    if not found:
        few = "; ".join(dict.fromkeys(f"{drop.reason} ({drop.detail})" for drop in islice(drops, 3)))
        raise ShardError(f"holds no sample of the published layout: {few}")
    # A damaged sample may be of any width; what most have is the set's.
    width = Counter(sample.image_rows.shape[1] for sample in found).most_common(1)[0][0]
    found = [sample for sample in found if sample.image_rows.shape[1] == width]
    teachers = _teachers(widths, scales, found)
    num_synthetic = max(len(sample.synthetic) for sample in found)
    max_captions = max(len(sample.sample.captions) for sample in found)
    return ImportOutline(
        teachers,
        {captioner or CAPTIONER: num_synthetic} if num_synthetic else {},
        max(len(sample.views) for sample in found),
        has_clean=False,
        source=source_config(("txt",), max_captions),
    )


def _teachers(
    widths: Mapping[str, int], scales: Mapping[str, float], found: list[PublishedSample]
) -> tuple[ImportedTeacher, ...]:
    width = found[0].image_rows.shape[1]
    if not widths:
        raise ConfigError(f"--dims: the embeddings are {width} wide; say NAME=WIDTH,... of their teachers, in order")
    if sum(widths.values()) != width:
        given = " + ".join(map(str, widths.values()))
        raise ConfigError(f"--dims: {given} is {sum(widths.values())}, the embeddings are {width} wide")
    unknown = sorted(set(scales) - set(widths))
    if unknown:
        raise ConfigError(f"--logit-scale {unknown[0]}: --dims names no such teacher; it names {', '.join(widths)}")
    teachers: list[ImportedTeacher] = []
    for name, dim in widths.items():
        start = sum(teacher.dim for teacher in teachers)
        teachers.append(ImportedTeacher(name, start, dim, scales.get(name, LEARNED_SCALE)))
        norms = np.concatenate([norms_of(sample.image_rows[:, teachers[-1].slice()]) for sample in found])
        median = float(np.median(norms)) if len(norms) else 1.0
        if abs(median - 1) > MAX_NORM_ERROR:
            raise ConfigError(
                f"--dims {name}={dim}: columns {start}..{start + dim - 1} have the norm {median:.3f}, not 1: "
                "are these the widths, in this order?"
            )
    return tuple(teachers)


def norms_of(rows: Rows) -> Float64[np.ndarray, " rows"]:
    """The L2 norm of each row."""
    norms: Float64[np.ndarray, " rows"] = np.linalg.norm(rows.astype(np.float64), axis=1)
    return norms
