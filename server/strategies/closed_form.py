"""Heads in closed form from sufficient statistics: each client is asked once.

With clients-per-round below the number of clients, each round asks clients that have not been
asked yet, and the head is that of all so far. Features are x = [gain * (q - center), 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.statistics import Statistics, in_feature_space, ridge, triangle_size
from common.types import Affine, ClientPlan, Head, UpdateBatch
from server.strategy import Strategy

__all__ = ["MeansState", "StatisticsState", "afl", "fed3r", "fedcof", "fedncm", "lda"]

_Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class StatisticsState:
    """Sums over all clients so far, and who they were.

    Attributes:
        gram: uint64 (D (D + 1) / 2,), see common.statistics; empty if nobody needs it.
        moments: uint64 (K, D).
        seen: clients that are in the sums and must not be counted again.
    """

    gram: npt.NDArray[np.uint64]
    moments: npt.NDArray[np.uint64]
    seen: tuple[int, ...]


def _from_sums(
    name: str, affine: Affine, solve: Callable[[_Array, _Array], npt.NDArray[np.floating]]
) -> Strategy[StatisticsState]:
    """A head (K, D) from A = X^T X (D, D) and B = Y^T X (K, D) of all clients so far."""

    def init(head: Head) -> StatisticsState:
        width = head.num_features + 1
        return StatisticsState(
            np.zeros(triangle_size(width), np.uint64),
            np.zeros((head.num_classes, width), np.uint64),
            (),
        )

    def aggregate(
        state: StatisticsState, _head: Head, updates: UpdateBatch
    ) -> tuple[StatisticsState, Head]:
        new = StatisticsState(
            state.gram + updates.fields["gram"].astype(np.uint64).sum(axis=0),
            state.moments + updates.fields["moments"].astype(np.uint64).sum(axis=0),
            _with(state.seen, updates),
        )
        a, b = Statistics(new.gram, new.moments).in_feature_space(affine)
        return new, Head.from_matrix(solve(a, b))

    return Strategy(
        name=name,
        init=init,
        plan=lambda state, _round: _ask_once(state.seen, "gram", "moments"),
        aggregate=aggregate,
    )


def _ask_once(seen: tuple[int, ...], *fields: str) -> ClientPlan:
    return ClientPlan(kind="statistics", fields=fields, weighting="uniform", exclude=seen)


def _with(seen: tuple[int, ...], updates: UpdateBatch) -> tuple[int, ...]:
    return tuple(sorted((*seen, *(i for ids in updates.client_ids for i in ids))))


def fed3r(
    *, affine: Affine, lam: float = 10.0, normalize: bool = False
) -> Strategy[StatisticsState]:
    """Fed3R, federated recursive ridge regression: exact whatever the partition.

    Fani et al., ICML 2024, arXiv 2406.01116. Each client sends ``X^T X`` and ``X^T Y`` once, as
    exact integers; the head equals centralized ridge regression.

    Args:
        affine: how integer features become x; given by the run.
        lam: ridge penalty, also on the bias.
        normalize: divide each class's column by its norm, as the paper does.
    """
    return _from_sums("fed3r", affine, lambda a, b: ridge(a, b, lam, normalize))


def afl(*, affine: Affine) -> Strategy[StatisticsState]:
    """AFL, analytic federated learning: the least squares head of everybody's data.

    He et al., CVPR 2025, arXiv 2405.16240. Differs from the paper: clients send ``X^T X`` and
    ``X^T Y`` themselves, of the same size as the paper's regularized Gram and its local head, so
    that the server's result is the paper's without the rounding of taking its regularization
    off again. Directions without any data (dead features) get no weight.
    """

    def solve(a: _Array, b: _Array) -> _Array:
        values, vectors = np.linalg.eigh(a)
        alive = values > values[-1] * len(a) * np.finfo(np.float64).eps
        basis = vectors[:, alive]
        weight: _Array = (b @ basis / values[alive]) @ basis.T
        return weight

    return _from_sums("afl", affine, solve)


def lda(*, affine: Affine, shrinkage: float = 0.1) -> Strategy[StatisticsState]:
    """Linear discriminant analysis with one pooled covariance (FedCGS, arXiv 2503.06962).

    ``S = (A - sum N_c mu_c mu_c^T) / (N - K)``, shrunk to ``(1 - a) S + a tr(S) / d I``;
    ``w_c = S^-1 mu_c`` and ``b_c = -mu_c^T S^-1 mu_c / 2 + ln pi_c``.

    Args:
        affine: how integer features become x; given by the run.
        shrinkage: a, in (0, 1].
    """

    def solve(a: _Array, b: _Array) -> _Array:
        counts, d = b[:, -1], a.shape[0] - 1
        present = counts > 0
        means = b[present, :-1] / counts[present, None]
        scatter = a[:-1, :-1] - (means * counts[present, None]).T @ means
        covariance = scatter / max(counts.sum() - present.sum(), 1.0)
        spread = max(float(np.trace(covariance)) / d, np.finfo(np.float64).tiny)
        covariance = (1 - shrinkage) * covariance + shrinkage * spread * np.eye(d)
        weight = np.linalg.solve(covariance, means.T).T
        bias = -0.5 * (weight * means).sum(axis=1) + np.log(counts[present] / counts.sum())
        head = np.zeros_like(b)
        head[present, :-1], head[present, -1] = weight, bias
        head[~present, -1] = bias.min() - 100  # a class that nobody has is never the answer
        return head

    return _from_sums("lda", affine, solve)


@dataclass(frozen=True, eq=False)
class MeansState:
    """Class sums of each client so far.

    Attributes:
        moments: uint64 (m, K, D), a row for each client; one row of sums for FedNCM.
        seen: clients that are in it.
    """

    moments: npt.NDArray[np.uint64]
    seen: tuple[int, ...]


def fedncm(*, affine: Affine) -> Strategy[MeansState]:
    """FedNCM: each class's weight is its normalized mean, ``mu_c / ||mu_c||``; no bias.

    Legate et al., "Guiding the last layer in federated learning with pre-trained models",
    NeurIPS 2023, arXiv 2306.03937.
    """

    def aggregate(state: MeansState, _head: Head, updates: UpdateBatch) -> tuple[MeansState, Head]:
        summed = state.moments + updates.fields["moments"].astype(np.uint64).sum(axis=0)
        means = in_feature_space(summed[0], affine)
        means[:, -1] = 0
        norms = np.linalg.norm(means, axis=1, keepdims=True)
        head = Head.from_matrix(means / np.where(norms > 0, norms, 1))
        return MeansState(summed, _with(state.seen, updates)), head

    return Strategy(
        name="fedncm",
        init=lambda head: MeansState(np.zeros((1, *head.matrix.shape), np.uint64), ()),
        plan=lambda state, _round: _ask_once(state.seen, "moments"),
        aggregate=aggregate,
    )


def fedcof(*, affine: Affine, gamma: float = 0.1, normalize: bool = True) -> Strategy[MeansState]:
    """FedCOF: class covariances from the spread of the clients' class means.

    arXiv 2412.14326. ``S_c = sum_i n_ic (mu_ic - mu_c)(mu_ic - mu_c)^T / (K_c - 1) + gamma I``
    with K_c the clients that have class c, ``G = sum_c (N_c - 1) S_c + N mu mu^T``,
    ``W = B G^-1``. Class means alone leave a client: a K-th of Fed3R's uplink and less.

    Args:
        affine: how integer features become x; given by the run.
        gamma: shrinkage; 0.1 is the paper's for MobileNetV2.
        normalize: divide each class's column by its norm, as the paper does.
    """

    def solve(moments: npt.NDArray[np.uint64]) -> _Array:
        b = np.stack([in_feature_space(client, affine) for client in moments])
        sums = b.sum(axis=0)
        counts, total = sums[:, -1], sums[:, -1].sum()
        overall = sums.sum(axis=0) / total
        g = total * np.outer(overall, overall)
        for c in np.flatnonzero(counts):
            mine = b[b[:, c, -1] > 0, c]
            weights = mine[:, -1:]
            away = mine / weights - sums[c] / counts[c]
            spread = (away * weights).T @ away / max(len(mine) - 1, 1)
            g += (counts[c] - 1) * (spread + gamma * np.eye(len(g)))
        # The constant's own direction has no spread, and one example of a class no weight.
        g += 1e-9 * max(float(np.trace(g)) / len(g), 1.0) * np.eye(len(g))
        head: _Array = np.linalg.solve(g, sums.T).T
        if normalize:
            norms = np.linalg.norm(head, axis=1, keepdims=True)
            head = head / np.where(norms > 0, norms, 1)
        return head

    def aggregate(state: MeansState, _head: Head, updates: UpdateBatch) -> tuple[MeansState, Head]:
        moments = np.concatenate([state.moments, updates.fields["moments"].astype(np.uint64)])
        return MeansState(moments, _with(state.seen, updates)), Head.from_matrix(solve(moments))

    return Strategy(
        name="fedcof",
        init=lambda head: MeansState(np.zeros((0, *head.matrix.shape), np.uint64), ()),
        plan=lambda state, _round: _ask_once(state.seen, "moments"),
        aggregate=aggregate,
        reduce="individual",
    )
