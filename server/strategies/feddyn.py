"""FedDyn: each client has a linear term, and these terms make all clients' optima agree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.types import ClientPlan, Head, UpdateBatch
from server.strategy import Positive, RoundContext, Strategy, mean, total

__all__ = ["DynamicState", "feddyn"]


@dataclass(frozen=True, eq=False)
class DynamicState:
    """h, the mean of all clients' linear terms, float64 (K, d + 1)."""

    shift: npt.NDArray[np.float64]


def feddyn(*, alpha: Positive = 0.1) -> Strategy[DynamicState]:
    """FedDyn: clients minimise ``F_i(th) - <g_i, th> + alpha/2 ||th - w||^2``.

    Acar et al., "Federated learning based on dynamic regularization", ICLR 2021,
    arXiv 2111.04263: ``g_i <- g_i - alpha delta_i`` on the client, ``h <- h - alpha / N sum
    delta_i`` and ``w <- mean(th_i) - h / alpha`` on the server. All clients have equal weight.
    """

    def aggregate(
        state: DynamicState, head: Head, updates: UpdateBatch, context: RoundContext
    ) -> tuple[DynamicState, Head]:
        shift = state.shift - alpha / context.num_clients * total(updates, "delta")
        new = head.matrix + mean(updates, "delta") - shift / alpha
        return DynamicState(shift), Head.from_matrix(new)

    return Strategy(
        name="feddyn",
        init=lambda head: DynamicState(np.zeros(head.matrix.shape)),
        plan=lambda _state, _context: ClientPlan(
            weighting="uniform", mu=alpha, correction="feddyn"
        ),
        aggregate=aggregate,
    )
