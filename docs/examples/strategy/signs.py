"""A strategy of one's own: the head moves by one fixed step in each coordinate's direction."""

from dataclasses import dataclass

import numpy as np

from common.types import ClientPlan, Head
from server.strategy import NonNegative, Positive, Strategy, mean


@dataclass(frozen=True, eq=False)
class State:
    """What the strategy remembers between rounds: float64 (K, d + 1). A checkpoint keeps it."""

    velocity: np.ndarray


def signs(*, step: Positive = 0.01, noise: NonNegative = 0.0):
    """Momentum on the server, then the sign of every coordinate."""

    def aggregate(state, head, updates, context):
        velocity = 0.9 * state.velocity + mean(updates, "delta")
        drawn = context.rng.normal(0, noise, velocity.shape)  # the same after a resume
        direction = np.sign(velocity + drawn)
        metrics = {"turned": np.mean(direction != np.sign(velocity))}
        return State(velocity), Head.from_matrix(head.matrix + step * direction), metrics

    return Strategy(
        "signs",
        init=lambda head: State(np.zeros(head.matrix.shape)),
        plan=lambda state, context: ClientPlan(),  # what clients do in this round
        aggregate=aggregate,
    )
