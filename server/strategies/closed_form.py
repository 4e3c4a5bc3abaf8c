"""Heads in closed form from sufficient statistics: each client is asked once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.statistics import Statistics, ridge, triangle_size
from common.types import Affine, ClientPlan, Head, UpdateBatch
from server.strategy import Strategy

__all__ = ["StatisticsState", "fed3r"]


@dataclass(frozen=True, eq=False)
class StatisticsState:
    """Sums over all clients so far, and who they were.

    Attributes:
        gram: uint64 (D (D + 1) / 2,), see common.statistics.
        moments: uint64 (K, D).
        seen: clients that are in the sums and must not be counted again.
    """

    gram: npt.NDArray[np.uint64]
    moments: npt.NDArray[np.uint64]
    seen: tuple[int, ...]


def fed3r(
    *, affine: Affine, lam: float = 10.0, normalize: bool = False
) -> Strategy[StatisticsState]:
    """Fed3R, federated recursive ridge regression: exact whatever the partition.

    Fani et al., ICML 2024, arXiv 2406.01116. Each client sends ``X^T X`` and ``X^T Y`` once, as
    exact integers; the head equals centralized ridge regression. With clients-per-round below
    the number of clients, each round asks clients that have not been asked yet.

    Args:
        affine: how integer features become x; given by the run.
        lam: ridge penalty, also on the bias.
        normalize: divide each class's column by its norm, as the paper does.
    """

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
            tuple(sorted((*state.seen, *(i for ids in updates.client_ids for i in ids)))),
        )
        a, b = Statistics(new.gram, new.moments).in_feature_space(affine)
        return new, Head.from_matrix(ridge(a, b, lam, normalize))

    return Strategy(
        name="fed3r",
        init=init,
        plan=lambda state, _round: ClientPlan(
            kind="statistics",
            fields=("gram", "moments"),
            weighting="uniform",
            exclude=state.seen,
        ),
        aggregate=aggregate,
    )
