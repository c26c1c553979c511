"""Groups, stand-ins and nearest neighbours against brute force, across blocks and around rows of NaN."""

import numpy as np
import pytest

from reinforce import neighbours
from reinforce.neighbours import near_duplicate_groups, nearest_neighbours, stand_ins


def unit(rows: int, dim: int = 8, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return np.asarray(values / np.linalg.norm(values, axis=1, keepdims=True))


def test_groups_are_connected_components_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_BLOCK_ROWS", 7)
    rows = unit(60, 4)
    threshold = 0.9
    close = rows @ rows.T >= threshold
    expected = np.arange(60)
    while True:
        spread = np.array([expected[close[row]].min() for row in range(60)])
        if (spread == expected).all():
            break
        expected = spread
    groups = near_duplicate_groups(rows, threshold)
    assert groups.tolist() == expected.tolist()
    assert 1 < len(set(groups.tolist())) < 60


def test_a_chain_is_one_group_and_its_first_row_leads() -> None:
    angles = np.array([0.3, 0.0, 0.2, 0.1, 2.0])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert near_duplicate_groups(rows, float(np.cos(0.11))).tolist() == [0, 0, 0, 0, 4]


def test_rows_that_do_not_exist_are_alone() -> None:
    rows = unit(4)
    rows[1] = rows[0]
    rows[2] = rows[3] = np.nan
    assert near_duplicate_groups(rows, 0.99).tolist() == [0, 0, 2, 3]
    assert near_duplicate_groups(rows[:0], 0.9).tolist() == []


@pytest.mark.parametrize("block_rows", [7, 100])
def test_stand_ins_are_those_of_one_row_after_another(block_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_BLOCK_ROWS", block_rows)
    rows = unit(80, 3)
    rows[[4, 50]] = np.nan
    order = np.random.default_rng(1).permutation(80)
    staying: list[int] = []
    expected = np.arange(80)
    for row in order.tolist():
        close = [other for other in staying if rows[row] @ rows[other] >= 0.95]
        if close:
            expected[row] = close[0]
        else:
            staying.append(row)
    found = stand_ins(rows, 0.95, order)
    assert found.tolist() == expected.tolist()
    assert 10 < len(staying) < 70
    assert stand_ins(rows[:0], 0.95, order[:0]).tolist() == []


def test_the_ends_of_a_chain_both_stay() -> None:
    angles = np.array([0.1, 0.0, 0.2])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    close = float(np.cos(0.11))
    assert stand_ins(rows, close, np.array([1, 0, 2])).tolist() == [1, 1, 2]
    assert stand_ins(rows, close, np.array([0, 1, 2])).tolist() == [0, 0, 0]


def test_nearest_neighbours_are_those_of_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_BLOCK_ROWS", 9)
    rows = unit(40)
    rows[5] = np.nan
    found = nearest_neighbours(rows, 4)
    for row in set(range(40)) - {5}:
        cosines = np.nan_to_num(rows) @ rows[row]
        cosines[[row, 5]] = -2
        assert set(found[row].tolist()) == set(np.argsort(cosines)[-4:].tolist())
    assert not (found[np.arange(40) != 5] == 5).any()
