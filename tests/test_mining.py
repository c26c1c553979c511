"""Which triplets are mined of embeddings and labels: those that plain loops find, whatever the blocks."""

from collections import Counter

import numpy as np
import pytest

from reinforce.student import mining
from reinforce.student.mining import Triplets, mine


def random_samples(num_samples: int = 90, num_labels: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Clusters that overlap; a sample without a label, a label with one sample, one that is far from all others."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, num_labels, num_samples).astype(np.int32)
    centres = generator.normal(size=(num_labels, 8))
    rows = centres[labels] + generator.normal(size=(num_samples, 8))
    labels[:2] = (-1, num_labels)
    labels[2:5] = num_labels + 1
    rows[2:5] = np.eye(8)[7] * 100 + generator.normal(size=(3, 8)) / 100
    rows[5:, 7] = -5
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), labels


def by_force(rows: np.ndarray, labels: np.ndarray, margin: float) -> dict[int, tuple[int, set[int]] | str]:
    """Anchor -> its positive and all its semi-hard negatives, or why it is none."""
    found: dict[int, tuple[int, set[int]] | str] = {}
    labelled = [index for index in range(len(rows)) if labels[index] >= 0]
    for anchor in labelled:
        distances = {other: np.linalg.norm(rows[anchor] - rows[other].astype(np.float64)) for other in labelled}
        same = [other for other in labelled if labels[other] == labels[anchor] and other != anchor]
        if not same:
            found[anchor] = "no_positive"
            continue
        positive = min(same, key=distances.__getitem__)
        nearest = distances[positive]
        others = (other for other in labelled if labels[other] != labels[anchor])
        semi_hard = {other for other in others if nearest < distances[other] < nearest + margin}
        found[anchor] = (positive, semi_hard) if semi_hard else "no_semi_hard_negative"
    return found


def mine_of(*, margin: float = 0.3, seed: int = 0, epoch: int = 0) -> Triplets:
    rows, labels = random_samples()
    return mine(rows, labels, margin=margin, num_negatives=3, seed=seed, epoch=epoch)


@pytest.mark.parametrize("margin", [0.3, 0.02])
def test_mining_in_blocks_is_mining_by_force(margin: float, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = mine_of(margin=margin)
    monkeypatch.setattr(mining, "_MOST_DISTANCES", 700)
    mined = mine_of(margin=margin)
    expected = by_force(*random_samples(), margin)
    assert mined.skipped == Counter(reason for reason in expected.values() if isinstance(reason, str))
    assert mined.skipped["no_positive"] == 1
    assert mined.skipped["no_semi_hard_negative"] >= 3
    assert mined.anchors.tolist() == [anchor for anchor, found in expected.items() if not isinstance(found, str)]
    num_few = 0
    for anchor, positive, negatives in zip(mined.anchors, mined.positives, mined.negatives.tolist(), strict=True):
        found = expected[int(anchor)]
        assert not isinstance(found, str)
        assert positive == found[0]
        assert set(negatives) <= found[1]
        # As many different ones as there are.
        assert len(set(negatives)) == min(3, len(found[1]))
        num_few += len(found[1]) < 3
    assert 0 < num_few < len(mined)
    np.testing.assert_array_equal(whole.negatives, mined.negatives)


def test_negatives_are_drawn_anew_each_epoch_and_every_one_as_often() -> None:
    np.testing.assert_array_equal(mine_of(epoch=1).negatives, mine_of(epoch=1).negatives)
    assert (mine_of(epoch=1).negatives != mine_of(epoch=2).negatives).any()
    assert (mine_of(epoch=1).negatives != mine_of(epoch=1, seed=1).negatives).any()
    # An anchor and its positive, and six negatives at one distance.
    rows = np.eye(8, dtype=np.float32)
    rows[1] = rows[0]
    labels = np.array([0, 0, 1, 1, 1, 1, 1, 1], np.int32)
    drawn = Counter[int]()
    for epoch in range(400):
        mined = mine(rows, labels, margin=2.0, num_negatives=3, seed=0, epoch=epoch)
        drawn.update(mined.negatives[0].tolist())
    assert sorted(drawn) == [2, 3, 4, 5, 6, 7]
    assert all(150 < count < 250 for count in drawn.values())
