"""Which samples a page shows: the ends of a ranking by image-text cosine, and others at random; always the same ones.

Ranked are the samples of the shards whose values were read: their clean views and one caption source are read again, a
column at a time. The ends come from few shards, because each shard shown costs the download of a tar.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from jaxtyping import Float, Float32, Int

from reinforce.inspection.values import ORIGINAL, cosines, evenly, open_checked, read_matrix
from reinforce.shards.dataset import Dataset
from reinforce.shards.reader import FormatError
from reinforce.shards.schema import Signal, spine_file, view_column

MOST_STEMS = 4
"""Shards that ranked and random samples are taken from."""

_MOST_RANKED = 16_384
"""Samples: their embeddings are read again, which from a bucket is a matter of a few hundred MB."""

Place = tuple[str, int]
"""A stem, and a row among the kept samples of that shard."""


@dataclass(frozen=True, slots=True)
class Pick:
    """A chosen sample. `position` counts from the nearer end of the ranking, from 1; None if it was not ranked."""

    stem: str
    row: int
    score: float | None = None
    position: int | None = None


@dataclass(frozen=True, slots=True)
class Ranking:
    """Samples from the lowest to the highest score, which is a cosine, or with several teachers their mean z-score."""

    source: str
    teachers: tuple[str, ...]
    places: tuple[Place, ...]
    scores: tuple[float, ...]
    num_kept: dict[str, int]
    """Stem -> kept samples, of the shards that were ranked."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What to show. `worst` and `best` begin with the extreme; `others` are in source order."""

    stems: tuple[str, ...]
    worst: tuple[Pick, ...]
    best: tuple[Pick, ...]
    others: tuple[Pick, ...]


def rank_samples(
    dataset: Dataset,
    signals: Mapping[Signal, dict[str, Any]],
    stems: Sequence[str],
    bad_files: frozenset[str],
    *,
    most_samples: int = _MOST_RANKED,
) -> Ranking:
    """Ranks the kept samples of these shards by how close image and original captions are, by all teachers together.

    Where a sample has several captions their mean counts; where there are no original captions, those of the first
    captioner. Samples without a caption are not ranked. If the shards hold more than `most_samples`, fewer of them are
    taken, at least one.
    """
    keys: dict[str, list[str]] = {}
    for stem in stems:
        if spine_file(stem) not in bad_files:
            with suppress(FormatError, OSError), dataset.open_spine(stem) as file:
                spine = file.read(["key", "drop_reason"])
                keys[stem] = spine.filter(pc.is_null(spine.column("drop_reason"))).column("key").to_pylist()
    num_shards = len(keys)
    while num_shards > 1 and sum(len(keys[stem]) for stem in evenly(list(keys), num_shards)) > most_samples:
        num_shards -= 1
    keys = {stem: keys[stem] for stem in evenly(list(keys), num_shards)}
    num_kept = {stem: len(kept_keys) for stem, kept_keys in keys.items()}
    for source, teachers in _sources(signals):
        by_teacher = [_teacher_scores(dataset, keys, bad_files, teacher, source) for teacher in teachers]
        means = _mean_z(np.stack(by_teacher, axis=1)) if len(by_teacher) > 1 else by_teacher[0].astype(np.float64)
        order = np.argsort(means, kind="stable")[: int(np.isfinite(means).sum())]
        if len(order):
            places = [(stem, row) for stem in keys for row in range(num_kept[stem])]
            ranked = tuple(places[index] for index in order)
            return Ranking(source, teachers, ranked, tuple(means[order].tolist()), num_kept)
    return Ranking(ORIGINAL, (), (), (), num_kept)


def choose(ranking: Ranking, num_samples: int) -> Choice:
    """A third from each end, the rest at random from the same few shards; no sample twice.

    The ends are walked from outside in. The first samples met decide the shards, at most `MOST_STEMS`.
    """
    num_each = min(num_samples, len(ranking.places)) // 3
    stems: list[str] = []
    worst: list[Pick] = []
    best: list[Pick] = []
    for position in range(len(ranking.places) // 2):
        for picks, index in ((worst, position), (best, -1 - position)):
            stem, row = ranking.places[index]
            if len(picks) < num_each and (stem in stems or len(stems) < MOST_STEMS):
                stems += [stem] if stem not in stems else []
                picks.append(Pick(stem, row, ranking.scores[index], position + 1))
    rest = [stem for stem in ranking.num_kept if stem not in stems]
    stems += evenly(rest, MOST_STEMS - len(stems))
    taken = {(pick.stem, pick.row) for pick in (*worst, *best)}
    places = [(s, row) for s in sorted(stems) for row in range(ranking.num_kept[s]) if (s, row) not in taken]
    drawn = np.random.default_rng(0).permutation(len(places))[: num_samples - len(taken)]
    others = [Pick(*places[index]) for index in sorted(drawn.tolist())]
    return Choice(tuple(sorted(stems)), tuple(worst), tuple(best), tuple(others))


def _sources(signals: Mapping[Signal, dict[str, Any]]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Caption sources with the teachers that have embedded them and the clean image, the original captions first."""
    texts = [signal for signal in signals if signal.kind == "text"]
    for source in sorted({signal.source for signal in texts}, key=lambda name: (name != ORIGINAL, name)):
        teachers = tuple(
            signal.model
            for signal in texts
            if signal.source == source
            and view_column(0) in signals.get(Signal("image", signal.model), {}).get("columns", ())
        )
        if teachers:
            yield source, teachers


def _teacher_scores(
    dataset: Dataset, keys: dict[str, list[str]], bad_files: frozenset[str], teacher: str, source: str
) -> Float32[np.ndarray, " samples"]:
    """Mean cosine of each sample's captions to its clean image, NaN where there is none."""
    image, text = Signal("image", teacher), Signal("text", teacher, source)
    found = []
    for stem, kept_keys in keys.items():
        sums, counts = np.zeros(len(kept_keys), np.float32), np.zeros(len(kept_keys), np.float32)
        paths = (image.file(stem), text.file(stem))
        if not bad_files.intersection(paths):
            # What is wrong with a file stands among the problems already; one that is missing is counted.
            with suppress(FormatError, OSError):
                with open_checked(dataset, image, stem, kept_keys) as file:
                    clean = read_matrix(file, view_column(0))
                with open_checked(dataset, text, stem, kept_keys) as file:
                    for column in file.columns[1:]:
                        cosine = cosines(clean, read_matrix(file, column))
                        sums += np.nan_to_num(cosine)
                        counts += np.isfinite(cosine)
        found.append(np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0))
    return np.concatenate(found) if found else np.zeros(0, np.float32)


def _mean_z(scores: Float32[np.ndarray, "samples teachers"]) -> Float[np.ndarray, " samples"]:
    """Each teacher's scores in its own standard deviations from its own mean, averaged over the teachers there are."""
    known = np.isfinite(scores)
    values = np.where(known, scores, 0).astype(np.float64)
    count: Int[np.ndarray, " teachers"] = np.maximum(known.sum(axis=0), 1)
    centred = np.where(known, values - values.sum(axis=0) / count, 0)
    spread = np.sqrt((centred**2).sum(axis=0) / count)
    z = centred / np.where(spread > 0, spread, 1)
    num_teachers = known.sum(axis=1)
    return np.where(num_teachers > 0, z.sum(axis=1) / np.maximum(num_teachers, 1), np.nan)
