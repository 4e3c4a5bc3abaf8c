"""Heads in closed form from sufficient statistics; each client is asked only once.

If clients-per-round is below the number of clients, each round asks clients that were not asked
yet, and the head is that of all clients so far. Features are x = [gain * (q - center), 1].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.config.numbers import Auto
from common.images import ByteArray
from common.ridge import auto_ridge, fixed_ridge
from common.statistics import (
    Statistics,
    exact_sum,
    in_feature_space,
    least_squares,
    triangle_size,
    unit_rows,
)
from common.temperature import ridge_temperature
from common.types import Affine, ClientPlan, Head, UpdateBatch
from server.strategies.discriminant import discriminant, equal_shrinkage
from server.strategy import (
    Metrics,
    NonNegative,
    NonNegativeOrAuto,
    PositiveOrAuto,
    RoundContext,
    ShareOrAuto,
    Strategy,
)

__all__ = [
    "MeansState",
    "StatisticsState",
    "afl",
    "covariance_head",
    "ditto",
    "fed3r",
    "fedcof",
    "fedncm",
    "lda",
    "nearest_mean_head",
]

_Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class StatisticsState:
    """Sums over all clients so far, and their ids.

    Attributes:
        gram: uint64 (D (D + 1) / 2,), see common.statistics; empty if it is not needed.
        moments: uint64 (K, D).
        seen: clients in the sums, which must not be counted again.
    """

    gram: npt.NDArray[np.uint64]
    moments: npt.NDArray[np.uint64]
    seen: tuple[int, ...]


def _from_sums(
    name: str, solve: Callable[[Statistics, Affine], tuple[_Array, Metrics]]
) -> Strategy[StatisticsState]:
    """A head (K, D), with metrics, from the sums of all clients so far."""

    def init(head: Head) -> StatisticsState:
        width = head.num_features + 1
        return StatisticsState(
            np.zeros(triangle_size(width), np.uint64),
            np.zeros((head.num_classes, width), np.uint64),
            (),
        )

    def aggregate(
        state: StatisticsState, _head: Head, updates: UpdateBatch, context: RoundContext
    ) -> tuple[StatisticsState, Head, Metrics]:
        new = StatisticsState(
            exact_sum(state.gram, updates.fields["gram"]),
            exact_sum(state.moments, updates.fields["moments"]),
            _with(state.seen, updates),
        )
        matrix, metrics = solve(Statistics(new.gram, new.moments), context.affine)
        return new, Head.from_matrix(matrix), metrics

    return Strategy(
        name=name,
        init=init,
        plan=lambda state, _context: _ask_once(state.seen, "gram", "moments"),
        aggregate=aggregate,
    )


def _ask_once(seen: tuple[int, ...], *fields: str) -> ClientPlan:
    return ClientPlan(kind="statistics", fields=fields, weighting="uniform", exclude=seen)


def _with(seen: tuple[int, ...], updates: UpdateBatch) -> tuple[int, ...]:
    return tuple(sorted((*seen, *(i for ids in updates.client_ids for i in ids))))


def fed3r(*, lam: PositiveOrAuto = "auto", normalize: bool = False) -> Strategy[StatisticsState]:
    """Fed3R, federated recursive ridge regression: exact for any partition.

    Fani et al., ICML 2024, arXiv 2406.01116. Each client sends ``X^T X`` and ``X^T Y`` once, as
    exact integers; the head equals centralized ridge regression.

    Args:
        lam: ridge penalty, which applies to the bias too; "auto": chosen from the sums by
            generalized cross-validation, see common.ridge.
        normalize: divide each class's column by its norm, as the paper does.
    """

    def solve(sums: Statistics, affine: Affine) -> tuple[_Array, Metrics]:
        matrix, metrics = _ridge(sums, affine, lam)
        if not normalize:
            return matrix, metrics
        del metrics["head-temperature"]  # it is of the rows as they were
        return unit_rows(matrix), metrics

    return _from_sums("fed3r", solve)


def _ridge(sums: Statistics, affine: Affine, lam: float | Auto) -> tuple[_Array, dict[str, float]]:
    """The ridge head, and what was chosen for it."""
    a, b = sums.in_feature_space(affine)
    if lam != "auto":
        chosen, metrics = fixed_ridge(a, b, sums.num_examples, lam), {}
    else:
        chosen = auto_ridge(a, b, sums.num_examples)
        metrics = chosen.metrics
    temperature = ridge_temperature(chosen.matrix, a, b, chosen.freedom)
    return chosen.matrix, {**metrics, "head-temperature": temperature}


def ditto(
    *, lam: PositiveOrAuto = "auto", personal_lam: PositiveOrAuto = "auto"
) -> Strategy[StatisticsState]:
    """Ditto in closed form: Fed3R's head for all, and for each client its own head close to it.

    Li et al., "Ditto: fair and robust federated learning through personalization", ICML 2021,
    arXiv 2012.04221. After the last round each client takes the head ``v`` that minimises
    ``||X v - Y||^2 / 2 + personal_lam / 2 ||v - w||^2`` on its own training part, where w is the
    global head; see client.personal. Clients send nothing more than in Fed3R. Differs from the
    paper: squared loss, as in Fed3R, so that both problems are solved exactly instead of by steps.

    Args:
        lam: ridge penalty of the global head; "auto": as in ``fed3r``.
        personal_lam: how strongly a client's own head is kept close to the global one; "auto": each
            client chooses for itself.
    """
    personal = -1.0 if personal_lam == "auto" else personal_lam
    return dataclasses.replace(fed3r(lam=lam), name="ditto", personal=personal)


def afl(*, lam: NonNegativeOrAuto = "auto") -> Strategy[StatisticsState]:
    """AFL, analytic federated learning: the least squares head of all clients' data.

    He et al., CVPR 2025, arXiv 2405.16240. Differs from the paper: clients send ``X^T X`` and
    ``X^T Y`` themselves, which have the size of the paper's regularized Gram matrix and local
    head. The server's result is the paper's, without the rounding errors of removing the
    regularization again. Its least squares need many more examples than features: by default they
    are regularized, which makes the head Fed3R's.

    Args:
        lam: ridge penalty; 0: the paper's least squares, where constant features get no weight;
            "auto": as in ``fed3r``.
    """

    def solve(sums: Statistics, affine: Affine) -> tuple[_Array, Metrics]:
        if lam == 0:
            return least_squares(*sums.in_feature_space(affine), sums.varies), {}
        return _ridge(sums, affine, lam)

    return _from_sums("afl", solve)


def lda(*, shrinkage: ShareOrAuto = "auto") -> Strategy[StatisticsState]:
    """Linear discriminant analysis with one pooled covariance (FedCGS, arXiv 2503.06962).

    ``S = (A - sum N_c mu_c mu_c^T) / (N - K)``, shrunk to ``(1 - a) S + a tr(S) / d I``;
    ``w_c = S^-1 mu_c`` and ``b_c = -mu_c^T S^-1 mu_c / 2 + ln pi_c``.

    Args:
        shrinkage: a, in (0, 1]; "auto": chosen from the sums, see ``equal_shrinkage``.
    """

    def solve(sums: Statistics, affine: Affine) -> tuple[_Array, Metrics]:
        a, b = sums.in_feature_space(affine)
        if shrinkage != "auto":
            return discriminant(a, b, shrinkage), {}
        chosen = auto_ridge(a, b, sums.num_examples)
        share = equal_shrinkage(a, b, chosen.lam)
        return discriminant(a, b, share), {**chosen.metrics, "lda-shrinkage": share}

    return _from_sums("lda", solve)


@dataclass(frozen=True, eq=False)
class MeansState:
    """Class sums of each client so far.

    Attributes:
        moments: uint64 (m, K, D), a row for each client; one row of sums for FedNCM.
        seen: clients in ``moments``.
    """

    moments: npt.NDArray[np.uint64]
    seen: tuple[int, ...]


def fedncm() -> Strategy[MeansState]:
    """FedNCM: each class's weight is its normalized mean, ``mu_c / ||mu_c||``; no bias.

    Legate et al., "Guiding the last layer in federated learning with pre-trained models",
    NeurIPS 2023, arXiv 2306.03937. The means are those of the backbone's plain features, as in the
    paper. The centered features of the other heads gave 74 % instead of 80 % on mnist5k. To compute
    the same from x = gain * (q - center), the head has a bias.
    """

    def aggregate(
        state: MeansState, _head: Head, updates: UpdateBatch, context: RoundContext
    ) -> tuple[MeansState, Head]:
        summed = exact_sum(state.moments[0], updates.fields["moments"])
        head = Head.from_matrix(nearest_mean_head(summed, context.affine, context.zero_point))
        return MeansState(summed[None], _with(state.seen, updates)), head

    return Strategy(
        name="fedncm",
        init=lambda head: MeansState(np.zeros((1, *head.matrix.shape), np.uint64), ()),
        plan=lambda state, _context: _ask_once(state.seen, "moments"),
        aggregate=aggregate,
    )


def nearest_mean_head(
    moments: npt.NDArray[np.uint64], affine: Affine, zero_point: ByteArray | int
) -> _Array:
    """The head (K, D) of ``fedncm`` from the class sums of [q 1], uint64 (K, D), in float64."""
    sums, counts = moments[:, :-1].astype(np.float64), moments[:, -1:].astype(np.float64)
    toward = unit_rows(sums - counts * zero_point)  # the sum's direction is the mean's
    head = np.empty(moments.shape)
    head[:, :-1] = toward / affine.gain
    head[:, -1] = toward @ (affine.center.astype(np.float64) - zero_point)
    # A class without examples is never predicted: no feature vector is as long as this.
    head[counts[:, 0] == 0, -1] = -256 * np.sqrt(sums.shape[1])
    return head


def fedcof(*, gamma: NonNegative = 0.1, normalize: bool = True) -> Strategy[MeansState]:
    """FedCOF: class covariances from the spread of the clients' class means.

    arXiv 2412.14326. ``S_c = sum_i n_ic (mu_ic - mu_c)(mu_ic - mu_c)^T / (K_c - 1) + gamma I``
    with K_c the clients that have class c, ``G = sum_c (N_c - 1) S_c + N mu mu^T``,
    ``W = B G^-1``. Clients send only class means: a K-th of Fed3R's uplink or less.

    Args:
        gamma: shrinkage; 0.1 is the paper's value for MobileNetV2.
        normalize: divide each class's column by its norm, as the paper does.
    """

    def aggregate(
        state: MeansState, _head: Head, updates: UpdateBatch, context: RoundContext
    ) -> tuple[MeansState, Head]:
        moments = np.concatenate([state.moments, updates.fields["moments"].astype(np.uint64)])
        b = np.stack([in_feature_space(client, context.affine) for client in moments])
        head = Head.from_matrix(covariance_head(b, gamma, normalize))
        return MeansState(moments, _with(state.seen, updates)), head

    return Strategy(
        name="fedcof",
        init=lambda head: MeansState(np.zeros((0, *head.matrix.shape), np.uint64), ()),
        plan=lambda state, _context: _ask_once(state.seen, "moments"),
        aggregate=aggregate,
        reduce="individual",
    )


def covariance_head(b: _Array, gamma: float, normalize: bool) -> _Array:
    """The head (K, D) of ``fedcof`` from the clients' Y^T X (m, K, D), in float64."""
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
    # The constant 1 has no spread, and a single example of a class has no weight.
    g += 1e-9 * max(float(np.trace(g)) / len(g), 1.0) * np.eye(len(g))
    head: _Array = np.linalg.solve(g, sums.T).T
    return unit_rows(head) if normalize else head
