"""`reinforce select --corpus`: of the sentences of corpora those that are near the images of the same dataset.

A sentence is kept if it is among the nearest of any image, in the space of one teacher. The stored embeddings are read
a row group at a time: those of sentences once, into a temporary file of 2 bytes a value, those of images once, in
blocks. In memory: keys of both, and some 60 bytes a sentence. Time: images x sentences x dim, see `grounding`.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float16, Int64

from reinforce.config import ConfigError
from reinforce.neighbours import stand_ins
from reinforce.selection.candidates import Candidates
from reinforce.selection.cells import sort_into_cells
from reinforce.selection.criteria import Reason, SentenceCriteria
from reinforce.selection.file import SENTENCE_SELECTION_SCHEMA, write_selection
from reinforce.selection.grounding import IMAGE_ROWS, NOT_NEAR, Grounding, ground
from reinforce.selection.membership import Other, leave_out_by_name, named_by
from reinforce.selection.sentence_outcome import SentenceOutcome, sentence_outcome_of
from reinforce.selection.sentence_signals import Space, choose_space
from reinforce.selection.signals import StoredRows, leave_out_unfinished
from reinforce.shards.dataset import Dataset
from reinforce.shards.schema import FORMAT_VERSION

_ROWS_AT_A_TIME = 2048


def select_sentences(dataset: Dataset, output_uri: str, criteria: SentenceCriteria) -> SentenceOutcome:
    """Writes the sentences that meet all criteria, by stem, each file's in its order, replacing the file.

    Raises `ConfigError` if nothing is kept, or if a corpus, a teacher or what it says is not there; `FormatError` for a
    damaged file.
    """
    space = choose_space(dataset, criteria)
    images, sentences = Candidates.of(dataset), space.sentences()
    others = leave_out_by_name(sentences, criteria)
    if criteria.images is not None:
        is_named, other = named_by(images, criteria.images, "--images")
        images.leave_out(Reason.NOT_WITHIN, ~is_named)
        others.append(other)
    leave_out_unfinished(dataset, images, [space.signal], criteria.missing)
    space.leave_out_unfinished(sentences, criteria.missing)
    with tempfile.TemporaryFile(prefix="reinforce-") as rows_file, tempfile.TemporaryFile(prefix="reinforce-") as tops:
        rows = _spool(rows_file, space, sentences)
        numbers = np.flatnonzero(sentences.is_in)
        found = _ground(_image_blocks(space, images), rows, criteria, tops)
        _leave_out_by_nearness(sentences, numbers, found, criteria)
        if criteria.dedup is not None:
            _leave_out_duplicates(sentences, numbers, rows, criteria.dedup)
        _leave_out_by_size(sentences, numbers, found, criteria)
        num_covered = _count_covered(tops, sentences, numbers, criteria.nearest)
    outcome = sentence_outcome_of(sentences, images, criteria, output_uri, space.teacher, num_covered, others)
    if not outcome.num_kept:
        raise ConfigError(f"select --corpus: {_why_nothing(outcome)}")
    table = _table(sentences, images, numbers, found)
    write_selection(output_uri, table, _footer(space, criteria, others, outcome), SENTENCE_SELECTION_SCHEMA)
    return outcome


def _why_nothing(outcome: SentenceOutcome) -> str:
    left = outcome.left_out if outcome.num_images_met else outcome.images_left_out
    reasons = ", ".join(f"{of.count:,} {of.asked}" for of in left) or "there are none"
    if not outcome.num_images_met:
        return f"sentences are near none of {outcome.num_images:,} images ({reasons}); build or name others"
    return (
        f"none of {outcome.num_sentences:,} sentences is left for {outcome.num_images_met:,} images ({reasons}); "
        "ask for less"
    )


def _spool(file: BinaryIO, space: Space, sentences: Candidates) -> Float16[np.ndarray, "sentences dim"]:
    """The embeddings of the sentences that are in, as a map of the file; those that have none are left out."""
    is_in, lacks = sentences.is_in, np.zeros(len(sentences), bool)
    num_rows = 0
    for shard in sentences.shards_in():
        start = sentences.rows(shard).start
        for rows in space.read_sentences(sentences, shard):
            here = slice(start, start + len(rows))
            usable = _is_usable(rows)
            lacks[here] = ~usable
            chosen = rows[usable & is_in[here]]
            file.write(chosen.tobytes())
            num_rows += len(chosen)
            start = here.stop
    file.flush()
    sentences.leave_out(Reason.NO_SCORE, lacks)
    if not num_rows:
        return np.empty((0, space.dim), np.float16)
    return np.memmap(file, np.float16, "r", shape=(num_rows, space.dim))


def _image_blocks(space: Space, images: Candidates) -> Iterator[tuple[Int64[np.ndarray, " images"], StoredRows]]:
    """The clean views of the images that are in, with their numbers; those that have none are left out."""
    is_in, lacks = images.is_in, np.zeros(len(images), bool)
    parts: list[StoredRows] = []
    numbers: list[Int64[np.ndarray, " some"]] = []
    for shard in images.shards_in():
        start = images.rows(shard).start
        for rows in space.read_images(images, shard):
            here = slice(start, start + len(rows))
            usable = _is_usable(rows)
            lacks[here] = ~usable
            usable &= is_in[here]
            if usable.any():
                parts.append(rows[usable])
                numbers.append(start + np.flatnonzero(usable))
            start = here.stop
            if sum(map(len, parts)) >= IMAGE_ROWS:
                yield np.concatenate(numbers), np.concatenate(parts)
                parts, numbers = [], []
    images.leave_out(Reason.NO_SCORE, lacks)
    if parts:
        yield np.concatenate(numbers), np.concatenate(parts)


def _ground(
    images: Iterator[tuple[Int64[np.ndarray, " images"], StoredRows]],
    rows: StoredRows,
    criteria: SentenceCriteria,
    tops: BinaryIO,
) -> Grounding:
    if criteria.probe is None or not len(rows):
        return ground(images, rows, criteria.nearest, tops)
    with tempfile.TemporaryFile(prefix="reinforce-") as file:
        cells = sort_into_cells(rows, file)
        return ground(images, rows, criteria.nearest, tops, cells=cells, num_probed=criteria.probe)


def _is_usable(rows: StoredRows) -> Bool[np.ndarray, " rows"]:
    """What is not finite, or zero, has no cosine."""
    return np.asarray(np.isfinite(rows).all(axis=1) & rows.any(axis=1))


def _leave_out_by_nearness(
    sentences: Candidates, numbers: Int64[np.ndarray, " met"], found: Grounding, criteria: SentenceCriteria
) -> None:
    """Those that no image is near to, then `--min-score`. All that follows goes by scores as they are written."""
    scores = np.full(len(sentences), np.nan, np.float32)
    is_near = found.ranks != NOT_NEAR
    scores[numbers[is_near]] = found.scores[is_near]
    sentences.leave_out(Reason.NOT_NEAREST, np.isnan(scores))
    if criteria.min_score is not None:
        sentences.leave_out(Reason.BELOW_MIN_SCORE, scores < np.float32(criteria.min_score))
    sentences.scores = scores


def _leave_out_duplicates(
    sentences: Candidates, numbers: Int64[np.ndarray, " met"], rows: StoredRows, threshold: float
) -> None:
    """Keeps the sentence with the highest score and what is not close to it, and so on; notes who stands for whom."""
    places = _ranked(sentences, numbers)
    found = stand_ins(rows, threshold, places)
    gone = np.flatnonzero(found != np.arange(len(found)))
    stand_for, cosines = np.arange(len(sentences)), np.ones(len(sentences), np.float32)
    for start in range(0, len(gone), _ROWS_AT_A_TIME):
        some = gone[start : start + _ROWS_AT_A_TIME]
        ones, twos = rows[some].astype(np.float32), rows[found[some]].astype(np.float32)
        norms = np.linalg.norm(ones, axis=1) * np.linalg.norm(twos, axis=1)
        cosines[numbers[some]] = (ones * twos).sum(axis=1) / norms
    stand_for[numbers] = numbers[found]
    sentences.stand_ins, sentences.stand_in_cosines = stand_for, cosines
    sentences.leave_out(Reason.DUPLICATE, stand_for != np.arange(len(sentences)))


def _leave_out_by_size(
    sentences: Candidates, numbers: Int64[np.ndarray, " met"], found: Grounding, criteria: SentenceCriteria
) -> None:
    """`--max-per-image`, then `--keep`. The order is by score, of equal ones the first in the dataset."""
    if criteria.max_per_image is not None:
        places = _ranked(sentences, numbers)
        places = places[np.argsort(found.images[places], kind="stable")]
        images = found.images[places]
        is_over = np.arange(len(images)) - np.searchsorted(images, images) >= criteria.max_per_image
        _leave_out(sentences, numbers[places[is_over]], Reason.OVER_MAX_PER_IMAGE)
    if criteria.keep is not None:
        places = _ranked(sentences, numbers)
        places = places[np.argsort(found.ranks[places], kind="stable")]
        _leave_out(sentences, numbers[places[criteria.keep :]], Reason.BEYOND_KEEP)


def _ranked(sentences: Candidates, numbers: Int64[np.ndarray, " met"]) -> Int64[np.ndarray, " in"]:
    """The places among `numbers` of the sentences that are in, by falling score; of equal ones the first is first."""
    assert sentences.scores is not None
    places = np.flatnonzero(sentences.is_in[numbers])
    return places[np.argsort(-sentences.scores[numbers[places]], kind="stable")]


def _leave_out(sentences: Candidates, numbers: Int64[np.ndarray, " some"], reason: Reason) -> None:
    applies = np.zeros(len(sentences), bool)
    applies[numbers] = True
    sentences.leave_out(reason, applies)


def _count_covered(tops: BinaryIO, sentences: Candidates, numbers: Int64[np.ndarray, " met"], count: int) -> int:
    """The images one of whose nearest sentences is kept, or stands in for one that is."""
    stays = sentences.is_in if sentences.stand_ins is None else sentences.is_in[sentences.stand_ins]
    stays = np.append(stays[numbers], False)  # the last for -1: no sentence
    tops.seek(0)
    num_covered = 0
    while data := tops.read(IMAGE_ROWS * count * 4):
        num_covered += int(np.count_nonzero(stays[np.frombuffer(data, np.int32).reshape(-1, count)].any(axis=1)))
    return num_covered


def _table(sentences: Candidates, images: Candidates, numbers: Int64[np.ndarray, " met"], found: Grounding) -> pa.Table:
    places = np.flatnonzero(sentences.is_in[numbers])
    assert sentences.scores is not None
    stems, keys = sentences.names(numbers[places])
    image_stems, image_keys = images.names(found.images[places])
    return pa.table(
        {
            "stem": stems,
            "key": keys,
            "score": sentences.scores[numbers[places]],
            "image_stem": image_stems,
            "image_key": image_keys,
            "rank": found.ranks[places],
        }
    )


def _footer(space: Space, criteria: SentenceCriteria, others: list[Other], outcome: SentenceOutcome) -> dict[str, Any]:
    """What made the selection. No path: other selections stand as their digests."""
    defaults = asdict(SentenceCriteria(corpora=criteria.corpora, nearest=criteria.nearest))
    asked = {name: value for name, value in asdict(criteria).items() if value != defaults[name]}
    for name in {"within", "without", "images"} & asked.keys():
        asked[name] = [other.sha256 for other in others if other.option == f"--{name}"]
    return {
        "format_version": FORMAT_VERSION,
        "kind": "selection",
        "spine_fingerprint": space.dataset.document["spine_fingerprint"],
        "corpora": {name: corpus.document["fingerprint"] for name, corpus in space.corpora.items()},
        "criteria": asked | {"corpora": list(criteria.corpora), "nearest": criteria.nearest},
        "signals": space.fingerprints,
        "num_sentences": outcome.num_sentences,
        "num_kept": outcome.num_kept,
        "left_out": {left.reason: left.count for left in outcome.left_out},
        "num_images": outcome.num_images,
        "num_images_met": outcome.num_images_met,
        "num_images_covered": outcome.num_images_covered,
    }
