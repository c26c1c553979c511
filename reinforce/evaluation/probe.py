"""A linear probe: multinomial logistic regression on frozen features, at its optimum.

Minimises, over weights W and free intercepts b, the mean cross-entropy + l2 / 2 * |W|^2, in float64, by L-BFGS from
zeros or from the optimum of another l2. Costs some 20 to 200 passes over the rows for each l2, 12 of which are tried.
The rows stay as they are, float32 on their device: a pass takes them a block at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor

BLOCK_VALUES = 1 << 22
"""Features or scores held at a time in float64: 32 MB."""
MAX_ITERATIONS = 1000
TOLERANCE = 1e-6
"""An optimum: no derivative is larger, in coordinates in which the objective's curvature is at most 1."""

_STEPS_PER_DECADE = 4
_WEAKEST, _STRONGEST = -8, 0
"""Decades of l2."""
_COARSE = 2 * _STEPS_PER_DECADE
_ONE_IN = 5
"""Of the images of each class, one is held out while l2 is chosen."""

Rows = Int64[Tensor, " rows"]


@dataclass(frozen=True)
class Probe:
    """A fitted probe. `gradient_norm` is of the objective by W and b together, with the features' mean at 0."""

    weights: Float64[Tensor, "classes dim"]
    intercepts: Float64[Tensor, " classes"]
    l2: float
    num_iterations: int
    gradient_norm: float
    is_converged: bool


@dataclass(frozen=True)
class ChosenProbe:
    """A probe of all rows, with the l2 that told most of the held-out rows right; of equal ones the strongest."""

    probe: Probe
    held_out_accuracy: float
    num_held_out: int
    is_at_end: bool
    """Whether a weaker or stronger l2 than may be chosen might be better still."""
    num_fits: int
    num_not_converged: int
    """Of all fits, those that stopped short of the optimum."""


def choose_probe(
    features: Float[Tensor, "all dim"], labels: Int[np.ndarray, " all"], num_classes: int
) -> ChosenProbe | None:
    """Chooses l2 by a held-out fifth of each class, then fits all rows; None if no class has two rows to split.

    l2 is searched as CLIP does: every two decades from 1 down to 1e-8, then around the best at half the distance,
    thrice. Every fit starts from the nearest one that is there.
    """
    is_held_out = held_out_rows(labels, num_classes)
    if not is_held_out.any():
        return None
    targets = torch.from_numpy(labels).to(features.device)
    held_out, rest = (
        torch.from_numpy(np.flatnonzero(part)).to(features.device) for part in (is_held_out, ~is_held_out)
    )
    problem = _Problem(features, targets, rest, num_classes)
    tried: dict[int, tuple[Probe, float]] = {}
    strongest, weakest = _STRONGEST * _STEPS_PER_DECADE, _WEAKEST * _STEPS_PER_DECADE

    def best() -> int:
        return max(tried, key=lambda place: (tried[place][1], place))

    def attempt(place: int) -> None:
        if weakest <= place <= strongest and place not in tried:
            nearest = min(tried, key=lambda other: (abs(other - place), -other), default=None)
            start = None if nearest is None else tried[nearest][0]
            probe = problem.fit(_l2_at(place), start)
            tried[place] = probe, _accuracy(probe, features, targets, held_out)

    for place in range(strongest, weakest - 1, -_COARSE):
        attempt(place)
    step = _COARSE // 2
    while step:
        around = best()
        attempt(around + step)
        attempt(around - step)
        step //= 2
    chosen = best()
    accuracy = tried[chosen][1]
    everything = torch.arange(len(labels), device=features.device)
    probe = _Problem(features, targets, everything, num_classes).fit(_l2_at(chosen), tried[chosen][0])
    fits = [probe, *(other for other, _ in tried.values())]
    return ChosenProbe(
        probe=probe,
        held_out_accuracy=accuracy,
        num_held_out=len(held_out),
        is_at_end=chosen in (weakest, strongest) and [a for _, a in tried.values()].count(accuracy) == 1,
        num_fits=len(fits),
        num_not_converged=sum(not fit.is_converged for fit in fits),
    )


def held_out_rows(labels: Int[np.ndarray, " all"], num_classes: int) -> Bool[np.ndarray, " all"]:
    """A fifth of each class, at least one row of two or more; a function of the labels in their order."""
    generator = np.random.default_rng(0)
    is_held_out = np.zeros(len(labels), bool)
    for label in range(num_classes):
        rows = np.flatnonzero(labels == label)
        num_rows = max(1, len(rows) // _ONE_IN) if len(rows) > 1 else 0
        is_held_out[generator.permutation(rows)[:num_rows]] = True
    return is_held_out


class _Problem:
    """Some rows of the features, to be fitted with one l2 after another.

    Coordinates are those of the rows' principal axes, each as long as an upper bound of the objective's curvature
    there says (Böhning's: half of the covariance, and l2). The objective is the same; L-BFGS needs a third of the
    iterations, as features of networks vary a thousandfold more along some directions than along others.
    """

    def __init__(self, features: Float[Tensor, "all dim"], labels: Int64[Tensor, " all"], rows: Rows, k: int) -> None:
        self._features, self._labels, self._rows, self._num_classes = features, labels, rows, k
        dim = features.shape[1]
        total = torch.zeros(dim, dtype=torch.float64, device=features.device)
        square = torch.zeros(dim, dim, dtype=torch.float64, device=features.device)
        for _, block in self._blocks():
            total += block.sum(dim=0)
        self._mean = total / len(rows)
        for _, block in self._blocks():
            block -= self._mean
            square += block.T @ block
        self._variances, self._axes = torch.linalg.eigh(square / len(rows))

    def fit(self, l2: float, start: Probe | None) -> Probe:
        """The optimum for one l2."""
        lengths = (self._variances.clamp_min(0) / 2 + l2).sqrt()[:, None]
        unknowns = torch.zeros(len(lengths) + 1, self._num_classes, dtype=torch.float64, device=lengths.device)
        if start is not None:
            unknowns[:-1] = (self._axes.T @ start.weights.T) * lengths
            unknowns[-1] = start.intercepts + start.weights @ self._mean
        optimizer = torch.optim.LBFGS(
            [unknowns],
            max_iter=MAX_ITERATIONS,
            max_eval=2 * MAX_ITERATIONS,
            tolerance_grad=TOLERANCE,
            tolerance_change=0.0,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def evaluate() -> float:
            loss, gradient = self._objective(unknowns, lengths, l2)
            unknowns.grad = gradient
            return loss

        optimizer.step(evaluate)  # type: ignore[no-untyped-call]
        _, gradient = self._objective(unknowns, lengths, l2)
        state: dict[str, Any] = optimizer.state[unknowns]
        weights = (self._axes @ (unknowns[:-1] / lengths)).T
        return Probe(
            weights=weights,
            intercepts=unknowns[-1] - weights @ self._mean,
            l2=l2,
            num_iterations=int(state["n_iter"]),
            gradient_norm=float(torch.cat([gradient[:-1] * lengths, gradient[-1:]]).norm()),
            is_converged=float(gradient.abs().max()) <= TOLERANCE,
        )

    def _objective(
        self, unknowns: Float64[Tensor, "dim+1 classes"], lengths: Float64[Tensor, "dim 1"], l2: float
    ) -> tuple[float, Float64[Tensor, "dim+1 classes"]]:
        """Its value and gradient."""
        along_axes = unknowns[:-1] / lengths
        weights = self._axes @ along_axes
        intercepts = unknowns[-1] - self._mean @ weights
        by_weights, by_intercepts = torch.zeros_like(weights), torch.zeros_like(intercepts)
        loss = torch.zeros((), dtype=torch.float64, device=unknowns.device)
        for rows, block in self._blocks():
            logs = torch.log_softmax(torch.addmm(intercepts, block, weights), dim=1)
            own = self._labels[rows, None]
            loss -= logs.gather(1, own).sum()
            surplus = logs.exp_()
            surplus.scatter_add_(1, own, torch.full_like(own, -1, dtype=torch.float64))
            by_weights += block.T @ surplus
            by_intercepts += surplus.sum(dim=0)
        num_rows = len(self._rows)
        by_weights = (by_weights - torch.outer(self._mean, by_intercepts)) / num_rows
        by_axes = (self._axes.T @ by_weights + l2 * along_axes) / lengths
        value = loss / num_rows + l2 / 2 * along_axes.square().sum()
        return float(value), torch.cat([by_axes, by_intercepts[None] / num_rows])

    def _blocks(self) -> Iterator[tuple[Rows, Float64[Tensor, "block dim"]]]:
        yield from _blocks(self._features, self._rows, self._num_classes)


def _blocks(
    features: Float[Tensor, "all dim"], rows: Rows, num_classes: int
) -> Iterator[tuple[Rows, Float64[Tensor, "block dim"]]]:
    for numbers in torch.split(rows, max(1, BLOCK_VALUES // max(features.shape[1], num_classes))):
        yield numbers, features[numbers].double()


def _accuracy(probe: Probe, features: Float[Tensor, "all dim"], labels: Int64[Tensor, " all"], rows: Rows) -> float:
    num_right = 0
    for numbers, block in _blocks(features, rows, len(probe.intercepts)):
        scores = torch.addmm(probe.intercepts, block, probe.weights.T)
        num_right += int((scores.argmax(dim=1) == labels[numbers]).sum())
    return num_right / len(rows)


def _l2_at(place: int) -> float:
    return float(10.0 ** (place / _STEPS_PER_DECADE))
