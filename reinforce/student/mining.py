"""Which samples a triplet is made of, from a student's own embeddings and its teacher's pseudo-labels.

A positive is the nearest other sample with the anchor's label. Negatives are drawn among the semi-hard samples of other
labels: farther than the positive, by less than the margin. Costs a product of samples x samples x dim, some rows at a
time: 20,000 samples of 512 values take some 15 s on one core, in the memory of 4 million distances.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64, UInt64

_MOST_DISTANCES = 1 << 22


@dataclass(frozen=True, eq=False)
class Triplets:
    """Indices of samples. `skipped` counts by reason the samples that are no anchors, though they have a label."""

    anchors: Int64[np.ndarray, " anchors"]
    positives: Int64[np.ndarray, " anchors"]
    negatives: Int64[np.ndarray, "anchors negatives"]
    skipped: Counter[str] = field(default_factory=Counter)
    samples_sha256: bytes = b""
    """Of the list of samples that the indices are of, for whoever keeps the triplets longer than the list."""

    def __len__(self) -> int:
        return len(self.anchors)


def mine(
    embeddings: Float32[np.ndarray, "samples dim"],
    labels: Int32[np.ndarray, " samples"],
    *,
    margin: float,
    num_negatives: int,
    seed: int,
    epoch: int,
) -> Triplets:
    """The triplets of an epoch, a function of the arguments. Embeddings are unit-norm; a label of -1 is none, and such
    a sample is in no triplet.

    An anchor with fewer semi-hard negatives than asked for has some of them several times, one without any is skipped,
    as is one without a positive.
    """
    words = _words(len(labels) * num_negatives, seed, epoch).reshape(len(labels), num_negatives)
    labelled = np.flatnonzero(labels >= 0)
    embeddings, labels, words = embeddings[labelled], labels[labelled], words[labelled]
    found: list[tuple[int, int, Int64[np.ndarray, " negatives"]]] = []
    skipped = Counter[str]()
    num_rows = max(1, _MOST_DISTANCES // max(1, len(labelled)))
    for start in range(0, len(labelled), num_rows):
        rows = np.arange(start, min(start + num_rows, len(labelled)))
        distances = _distances(embeddings[rows], embeddings)
        is_same = labels[rows, None] == labels[None]
        to_same = np.where(is_same, distances, np.inf)
        to_same[np.arange(len(rows)), rows] = np.inf
        positives = to_same.argmin(axis=1)
        nearest = to_same[np.arange(len(rows)), positives]
        is_semi_hard = _semi_hard(distances, is_same, nearest, margin)
        for place, row in enumerate(rows):
            candidates = np.flatnonzero(is_semi_hard[place])
            if np.isinf(nearest[place]):
                skipped["no_positive"] += 1
            elif not len(candidates):
                skipped["no_semi_hard_negative"] += 1
            else:
                found.append((int(row), int(positives[place]), _draw(candidates, words[row])))
    return Triplets(
        anchors=labelled[np.array([anchor for anchor, _, _ in found], np.int64)],
        positives=labelled[np.array([positive for _, positive, _ in found], np.int64)],
        negatives=labelled[np.array([drawn for _, _, drawn in found], np.int64).reshape(len(found), num_negatives)],
        skipped=skipped,
    )


def _distances(
    rows: Float32[np.ndarray, "rows dim"], embeddings: Float32[np.ndarray, "samples dim"]
) -> Float32[np.ndarray, "rows samples"]:
    distances: Float32[np.ndarray, "rows samples"] = np.sqrt(np.maximum(2 - 2 * (rows @ embeddings.T), 0))
    return distances


def _semi_hard(
    distances: Float32[np.ndarray, "rows samples"],
    is_same: Bool[np.ndarray, "rows samples"],
    nearest: Float32[np.ndarray, " rows"],
    margin: float,
) -> Bool[np.ndarray, "rows samples"]:
    semi_hard: Bool[np.ndarray, "rows samples"] = ~is_same
    semi_hard &= distances > nearest[:, None]
    semi_hard &= distances < nearest[:, None] + np.float32(margin)
    return semi_hard


def _draw(
    candidates: Int64[np.ndarray, " candidates"], words: UInt64[np.ndarray, " negatives"]
) -> Int64[np.ndarray, " negatives"]:
    """As many as there are words: different ones, every set as likely (Floyd); all, repeated, if there are fewer."""
    count, wanted = len(candidates), len(words)
    if count <= wanted:
        return np.resize(candidates, wanted)
    drawn: list[int] = []
    for last, word in zip(range(count - wanted, count), words.tolist(), strict=True):
        place = word % (last + 1)
        drawn.append(last if place in drawn else place)
    return candidates[drawn]


def _words(count: int, seed: int, epoch: int) -> UInt64[np.ndarray, " count"]:
    """Random 64-bit words, the same with any numpy."""
    digest = hashlib.blake2b(f"{seed}\0negatives\0{epoch}".encode(), digest_size=16).digest()
    return np.random.Philox(key=np.frombuffer(digest, "<u8")).random_raw(count)
