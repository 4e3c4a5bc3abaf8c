"""Server optimizers, which use the mean delta as a pseudo-gradient.

Reddi et al., "Adaptive federated optimization", ICLR 2021, arXiv 2003.00295; without bias
correction, as in the paper.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.types import ClientPlan, Head, UpdateBatch
from server.strategy import Positive, RoundContext, Share, Strategy, mean

__all__ = ["AdaptiveState", "MomentumState", "fedadagrad", "fedadam", "fedavgm", "fedyogi"]

_Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class MomentumState:
    """The server's velocity, float64 (K, d + 1)."""

    velocity: _Array


def fedavgm(*, server_lr: Positive = 1.0, momentum: Share = 0.9) -> Strategy[MomentumState]:
    """FedAvgM: ``v <- momentum v + mean delta; w <- w + server_lr v``.

    Hsu, Qi, Brown: "Measuring the effects of non-identical data distribution for federated
    visual classification", arXiv 1909.06335.
    """

    def aggregate(
        state: MomentumState, head: Head, updates: UpdateBatch, _context: RoundContext
    ) -> tuple[MomentumState, Head]:
        velocity = momentum * state.velocity + mean(updates, "delta")
        return MomentumState(velocity), Head.from_matrix(head.matrix + server_lr * velocity)

    return Strategy(
        name="fedavgm",
        init=lambda head: MomentumState(np.zeros(head.matrix.shape)),
        plan=lambda _state, _context: ClientPlan(),
        aggregate=aggregate,
    )


@dataclass(frozen=True, eq=False)
class AdaptiveState:
    """First and second moment of the pseudo-gradient, float64 (K, d + 1)."""

    first: _Array
    second: _Array


def _adaptive(
    name: str,
    second: Callable[[_Array, _Array], _Array],
    server_lr: float,
    beta1: float,
    tau: float,
) -> Strategy[AdaptiveState]:
    def aggregate(
        state: AdaptiveState, head: Head, updates: UpdateBatch, _context: RoundContext
    ) -> tuple[AdaptiveState, Head]:
        delta = mean(updates, "delta")
        new = AdaptiveState(
            beta1 * state.first + (1 - beta1) * delta, second(state.second, np.square(delta))
        )
        step = new.first / (np.sqrt(new.second) + tau)
        return new, Head.from_matrix(head.matrix + server_lr * step)

    def init(head: Head) -> AdaptiveState:
        shape = head.matrix.shape
        return AdaptiveState(np.zeros(shape), np.full(shape, tau**2))

    return Strategy(name, init, lambda _state, _context: ClientPlan(), aggregate)


def fedadagrad(
    *, server_lr: Positive = 0.1, beta1: Share = 0.0, tau: Positive = 1e-3
) -> Strategy[AdaptiveState]:
    """FedAdagrad (arXiv 2003.00295): ``v <- v + D^2`` with D the mean delta."""
    return _adaptive("fedadagrad", lambda v, square: v + square, server_lr, beta1, tau)


def fedadam(
    *, server_lr: Positive = 0.01, beta1: Share = 0.9, beta2: Share = 0.99, tau: Positive = 1e-3
) -> Strategy[AdaptiveState]:
    """FedAdam (arXiv 2003.00295): ``v <- beta2 v + (1 - beta2) D^2``."""
    return _adaptive(
        "fedadam", lambda v, square: beta2 * v + (1 - beta2) * square, server_lr, beta1, tau
    )


def fedyogi(
    *, server_lr: Positive = 0.01, beta1: Share = 0.9, beta2: Share = 0.99, tau: Positive = 1e-3
) -> Strategy[AdaptiveState]:
    """FedYogi (arXiv 2003.00295): ``v <- v - (1 - beta2) D^2 sign(v - D^2)``."""
    return _adaptive(
        "fedyogi",
        lambda v, square: v - (1 - beta2) * square * np.sign(v - square),
        server_lr,
        beta1,
        tau,
    )
