"""Strategies that weight clients by their steps (FedNova) or by their loss (q-FedAvg)."""

from __future__ import annotations

from common.types import ClientPlan, Head, UpdateBatch
from server.strategies.averaging import Stateless
from server.strategy import NonNegative, Positive, RoundContext, Strategy, mean, total

__all__ = ["fednova", "qfedavg"]


def fednova(*, mu: NonNegative = 0.0, server_lr: Positive = 1.0) -> Strategy[Stateless]:
    """FedNova: deltas are normalized by a_i, the clients' effective numbers of steps.

    Wang et al., "Tackling the objective inconsistency problem", NeurIPS 2020, arXiv 2007.07481:
    ``w <- w + tau_eff sum p_i delta_i / a_i`` with ``tau_eff = sum p_i a_i``; a_i follows the
    clients' momentum and proximal term.
    """

    def aggregate(
        state: Stateless, head: Head, updates: UpdateBatch, _context: RoundContext
    ) -> tuple[Stateless, Head]:
        step = mean(updates, "effective_steps") * mean(updates, "normalized_delta")
        return state, Head.from_matrix(head.matrix + server_lr * step)

    return Strategy(
        name="fednova",
        init=lambda _head: Stateless(),
        plan=lambda _state, _context: ClientPlan(
            fields=("normalized_delta", "effective_steps"), mu=mu
        ),
        aggregate=aggregate,
    )


def qfedavg(*, q: NonNegative = 1.0) -> Strategy[Stateless]:
    """q-FedAvg: clients with a larger loss F_i have more weight; q = 0 is the unweighted mean.

    Li et al., "Fair resource allocation in federated learning", ICLR 2020, arXiv 1905.10497:
    ``w <- w - sum F_i^q g_i / sum (q F_i^(q-1) ||g_i||^2 + L F_i^q)``, ``g_i = -L delta_i`` and
    L = 1 / lr, with the clients' learning rate. Plain SGD only: with momentum ``L delta`` is not
    a gradient.
    """

    def aggregate(
        state: Stateless, head: Head, updates: UpdateBatch, context: RoundContext
    ) -> tuple[Stateless, Head]:
        step = total(updates, "fair_delta") / context.lr / total(updates, "fair_scale")
        return state, Head.from_matrix(head.matrix + step)

    return Strategy(
        name="qfedavg",
        init=lambda _head: Stateless(),
        plan=lambda _state, _context: ClientPlan(
            fields=("fair_delta", "fair_scale"), weighting="uniform", q=q
        ),
        aggregate=aggregate,
        plain_sgd=True,
    )
