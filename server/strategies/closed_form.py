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
from common.ridge import auto_ridge, fixed_ridge
from common.scatter import sound_sums
from common.statistics import (
    Statistics,
    exact_sum,
    least_squares,
    triangle_size,
    unit_rows,
)
from common.temperature import ridge_temperature
from common.types import Affine, Head, UpdateBatch
from server.strategies.ask_once import ask_once, seen_with
from server.strategies.discriminant import discriminant, equal_shrinkage
from server.strategy import (
    Metrics,
    NonNegativeOrAuto,
    PositiveOrAuto,
    RoundContext,
    ShareOrAuto,
    Strategy,
)

__all__ = [
    "StatisticsState",
    "afl",
    "ditto",
    "fed3r",
    "lda",
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
            seen_with(state.seen, updates),
        )
        matrix, metrics = solve(Statistics(new.gram, new.moments), context.affine)
        return new, Head.from_matrix(matrix), metrics

    return Strategy(
        name=name,
        init=init,
        plan=lambda state, _context: ask_once(state.seen, "gram", "moments"),
        aggregate=aggregate,
    )


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
    a, b = sound_sums(sums, affine)
    n = sums.num_examples
    found = auto_ridge(a, b, n) if lam == "auto" else fixed_ridge(a, b, n, lam)
    return found.matrix, {
        **(found.metrics if lam == "auto" else {}),
        "ridge-leverage": found.freedom / n,
        "head-temperature": ridge_temperature(found.matrix, a, b, found.freedom),
    }


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
            client chooses for itself, and shifts its head to the classes that it has.
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
            return least_squares(*sound_sums(sums, affine), sums.varies), {}
        return _ridge(sums, affine, lam)

    plain = _from_sums("afl", solve)
    if lam != 0:
        return plain
    why = "without a penalty, noise in the smallest eigenvalues would become the largest weights"
    return dataclasses.replace(plain, codecs=("none",), codecs_why=why)


def lda(*, shrinkage: ShareOrAuto = "auto") -> Strategy[StatisticsState]:
    """Linear discriminant analysis with one pooled covariance (FedCGS, arXiv 2503.06962).

    ``S = (A - sum N_c mu_c mu_c^T) / (N - K)``, shrunk to ``(1 - a) S + a tr(S) / d I``;
    ``w_c = S^-1 mu_c`` and ``b_c = -mu_c^T S^-1 mu_c / 2 + ln pi_c``.

    Args:
        shrinkage: a, in (0, 1]; "auto": chosen from the sums, see ``equal_shrinkage``.
    """

    def solve(sums: Statistics, affine: Affine) -> tuple[_Array, Metrics]:
        a, b = sound_sums(sums, affine)
        if shrinkage != "auto":
            return discriminant(a, b, shrinkage), {}
        chosen = auto_ridge(a, b, sums.num_examples)
        share = equal_shrinkage(a, b, chosen.lam)
        return discriminant(a, b, share), {**chosen.metrics, "lda-shrinkage": share}

    return _from_sums("lda", solve)
