"""Robust aggregation of deltas, unweighted: a minority of malicious clients cannot steer it.

``byzantine`` is the share of clients that may be malicious; f = floor(byzantine * n).

Of codecs they tolerate int8, by the rule for single updates: the noise of one bit is as large as
the update, so distances and orders would be those of the noise. int8-shared is for sums that nobody
reads, and these strategies read each update.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from common.types import ClientPlan, Head, UpdateBatch
from server.strategies.averaging import Stateless
from server.strategy import Count, Positive, RoundContext, Strategy

__all__ = [
    "CenterState",
    "bulyan",
    "centered_clipping",
    "geometric_median",
    "krum",
    "median",
    "multikrum",
    "trimmed_mean",
]

_Array = npt.NDArray[np.float64]
_Minority = Annotated[float, Field(ge=0, lt=0.5)]


def _individual(
    name: str, combine: Callable[[_Array], _Array], server_lr: float
) -> Strategy[Stateless]:
    """A strategy that combines deltas (n, K * (d + 1)) into one delta."""

    def aggregate(
        state: Stateless, head: Head, updates: UpdateBatch, _context: RoundContext
    ) -> tuple[Stateless, Head]:
        deltas = updates.fields["delta"].astype(np.float64)
        step = combine(deltas.reshape(len(deltas), -1)).reshape(deltas.shape[1:])
        return state, Head.from_matrix(head.matrix + server_lr * step)

    return Strategy(
        name=name,
        init=lambda _head: Stateless(),
        plan=lambda _state, _context: ClientPlan(weighting="uniform"),
        aggregate=aggregate,
        reduce="individual",
    )


def median(*, server_lr: Positive = 1.0) -> Strategy[Stateless]:
    """Coordinate-wise median of the deltas.

    Yin et al., "Byzantine-robust distributed learning", ICML 2018, arXiv 1803.01498.
    """
    return _individual("median", lambda rows: np.median(rows, axis=0), server_lr)


def trimmed_mean(*, byzantine: _Minority = 0.2, server_lr: Positive = 1.0) -> Strategy[Stateless]:
    """Coordinate-wise mean without the f smallest and f largest values.

    Yin et al., ICML 2018, arXiv 1803.01498.
    """

    def combine(rows: _Array) -> _Array:
        cut = _tolerated(len(rows), byzantine, most=(len(rows) - 1) // 2)
        middle: _Array = np.sort(rows, axis=0)[cut : len(rows) - cut].mean(axis=0)
        return middle

    return _individual("trimmed_mean", combine, server_lr)


def krum(*, byzantine: _Minority = 0.2, server_lr: Positive = 1.0) -> Strategy[Stateless]:
    """The delta that is closest to its n - f - 2 nearest neighbours.

    Blanchard et al., NeurIPS 2017, arXiv 1703.02757.
    """

    def combine(rows: _Array) -> _Array:
        scores = _krum_scores(_squared_distances(rows), _tolerated(len(rows), byzantine))
        chosen: _Array = rows[int(np.argmin(scores))]
        return chosen

    return _individual("krum", combine, server_lr)


def multikrum(*, byzantine: _Minority = 0.2, server_lr: Positive = 1.0) -> Strategy[Stateless]:
    """The mean of the n - f deltas with the best Krum scores.

    Blanchard et al., NeurIPS 2017, arXiv 1703.02757.
    """

    def combine(rows: _Array) -> _Array:
        faulty = _tolerated(len(rows), byzantine)
        scores = _krum_scores(_squared_distances(rows), faulty)
        best = np.argsort(scores, kind="stable")[: len(rows) - faulty]
        middle: _Array = rows[best].mean(axis=0)
        return middle

    return _individual("multikrum", combine, server_lr)


def bulyan(*, byzantine: _Minority = 0.2, server_lr: Positive = 1.0) -> Strategy[Stateless]:
    """Krum picks n - 2f deltas one by one; the result is the mean of the values near their median.

    El Mhamdi et al., "The hidden vulnerability of distributed learning in Byzantium",
    ICML 2018, arXiv 1802.07927. Needs n >= 4f + 3: with fewer clients f is smaller.
    """

    def combine(rows: _Array) -> _Array:
        n = len(rows)
        faulty = _tolerated(n, byzantine, most=max(0, (n - 3) // 4))
        distances, left = _squared_distances(rows), list(range(n))
        lengths = np.square(rows).sum(axis=1)
        picked: list[int] = []
        while len(picked) < n - 2 * faulty:
            scores = _krum_scores(distances[np.ix_(left, left)], faulty)
            # Two deltas that are each other's nearest tie. The shorter one wins, in any order.
            picked.append(left.pop(int(np.lexsort((lengths[left], scores))[0])))
        chosen = rows[picked]
        offsets = np.abs(chosen - np.median(chosen, axis=0))
        nearest = np.argsort(offsets, axis=0, kind="stable")[: len(chosen) - 2 * faulty or 1]
        middle: _Array = np.take_along_axis(chosen, nearest, axis=0).mean(axis=0)
        return middle

    return _individual("bulyan", combine, server_lr)


def geometric_median(
    *, iterations: Count = 8, nu: Positive = 1e-6, server_lr: Positive = 1.0
) -> Strategy[Stateless]:
    """RFA: the point with the smallest sum of distances, found by smoothed Weiszfeld steps from 0.

    Pillutla, Kakade, Harchaoui: "Robust aggregation for federated learning", arXiv 1912.13445.
    Differs from the paper: all clients have equal weight, because an attacker could choose its own.
    """

    def combine(rows: _Array) -> _Array:
        return weiszfeld(rows, iterations=iterations, nu=nu)

    return _individual("geometric_median", combine, server_lr)


def weiszfeld(rows: _Array, *, iterations: int, nu: float) -> _Array:
    """Smoothed Weiszfeld algorithm, started at 0.

    >>> rows = np.arange(1.0, 10.0).reshape(3, 3)
    >>> weiszfeld(rows, iterations=3, nu=0.1).round(4).tolist()
    [3.7879, 4.7879, 5.7879]
    """
    point = np.zeros(rows.shape[1])
    for _ in range(iterations):
        weights = 1 / np.maximum(nu, np.linalg.norm(rows - point, axis=1))
        point = weights @ rows / weights.sum()
    return point


@dataclass(frozen=True, eq=False)
class CenterState:
    """The last aggregate, around which deltas are clipped, float64 (K, d + 1)."""

    center: _Array


def centered_clipping(
    *, radius: Positive = 0.1, iterations: Count = 3, server_lr: Positive = 1.0
) -> Strategy[CenterState]:
    """Move from the last aggregate v by the mean of ``(x_i - v) min(1, radius / ||x_i - v||)``.

    Karimireddy, He, Jaggi: "Learning from history for Byzantine robust optimization",
    ICML 2021, arXiv 2012.10333.
    """

    def aggregate(
        state: CenterState, head: Head, updates: UpdateBatch, _context: RoundContext
    ) -> tuple[CenterState, Head]:
        deltas, center = updates.fields["delta"].astype(np.float64), state.center
        for _ in range(iterations):
            away = deltas - center
            norms = np.sqrt(np.square(away).sum(axis=(1, 2)))
            factors = np.minimum(1, radius / np.maximum(norms, radius))
            center = center + (away * factors[:, None, None]).mean(axis=0)
        return CenterState(center), Head.from_matrix(head.matrix + server_lr * center)

    return Strategy(
        name="centered_clipping",
        init=lambda head: CenterState(np.zeros(head.matrix.shape)),
        plan=lambda _state, _context: ClientPlan(weighting="uniform"),
        aggregate=aggregate,
        reduce="individual",
    )


def _tolerated(n: int, byzantine: float, most: int | None = None) -> int:
    """f, limited by the number n of clients: Krum needs a neighbour besides the f + 1."""
    limit = max(0, n - 3) if most is None else most
    return min(math.floor(byzantine * n + 1e-9), limit)


def _squared_distances(rows: _Array) -> _Array:
    squares = np.square(rows).sum(axis=1)
    distances: _Array = np.maximum(squares[:, None] + squares - 2 * rows @ rows.T, 0)
    return (distances + distances.T) / 2  # exactly symmetric, so that nearest neighbours tie


def _krum_scores(distances: _Array, faulty: int) -> _Array:
    """Sum of the n - f - 2 smallest squared distances to others (at least one distance)."""
    nearest = np.sort(distances, axis=1)[:, 1:]  # without the distance to itself
    count = max(1, len(distances) - faulty - 2)
    scores: _Array = nearest[:, :count].sum(axis=1)
    return scores
