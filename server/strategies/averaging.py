"""Weighted averaging of the clients' deltas."""

from __future__ import annotations

from dataclasses import dataclass

from common.types import ClientPlan, Head, UpdateBatch
from server.strategy import NonNegative, Positive, RoundContext, Strategy, mean

__all__ = ["Stateless", "fedavg", "fedprox"]


@dataclass(frozen=True)
class Stateless:
    """The state of a strategy without a state."""


def fedavg(*, server_lr: Positive = 1.0) -> Strategy[Stateless]:
    """FedAvg: ``w <- w + server_lr * sum p_i delta_i`` with p_i the share of examples.

    McMahan et al., arXiv 1602.05629.
    """
    return _averaging("fedavg", 0.0, server_lr)


def fedprox(*, mu: NonNegative = 0.01, server_lr: Positive = 1.0) -> Strategy[Stateless]:
    """FedProx: FedAvg whose clients add ``mu/2 ||w - w_global||^2`` to their loss.

    Li et al., arXiv 1812.06127. Differs from the paper: clients are sampled uniformly and
    weighted by their examples, as in FedAvg.
    """
    return _averaging("fedprox", mu, server_lr)


def _averaging(name: str, mu: float, server_lr: float) -> Strategy[Stateless]:
    def aggregate(
        state: Stateless, head: Head, updates: UpdateBatch, _context: RoundContext
    ) -> tuple[Stateless, Head]:
        return state, Head.from_matrix(head.matrix + server_lr * mean(updates, "delta"))

    return Strategy(
        name=name,
        init=lambda _head: Stateless(),
        plan=lambda _state, _context: ClientPlan(mu=mu),
        aggregate=aggregate,
    )
