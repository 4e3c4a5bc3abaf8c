"""SCAFFOLD: control variates on the server and on each client."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.types import ClientPlan, FloatArray, Head, UpdateBatch
from server.strategy import Positive, RoundContext, Strategy, mean, total

__all__ = ["ScaffoldState", "scaffold"]


@dataclass(frozen=True, eq=False)
class ScaffoldState:
    """The server's control variate c, float32 (K, d + 1)."""

    control: FloatArray


def scaffold(*, server_lr: Positive = 1.0) -> Strategy[ScaffoldState]:
    """SCAFFOLD, option II: clients step along ``g - c_i + c``.

    Karimireddy et al., arXiv 1910.06378. With T steps, ``c_i+ = c_i - c - delta / (T lr)``,
    ``w <- w + server_lr * mean(delta)``, ``c <- c + sum(c_i+ - c_i) / num_clients``. All clients
    have equal weight, as in the paper. The uplink is twice FedAvg's. Plain SGD only: with momentum
    ``delta / (T lr)`` is not a gradient.
    """

    def aggregate(
        state: ScaffoldState, head: Head, updates: UpdateBatch, context: RoundContext
    ) -> tuple[ScaffoldState, Head]:
        control = state.control + total(updates, "control_delta") / context.num_clients
        return (
            ScaffoldState(control.astype(np.float32)),
            Head.from_matrix(head.matrix + server_lr * mean(updates, "delta")),
        )

    return Strategy(
        name="scaffold",
        init=lambda head: ScaffoldState(np.zeros_like(head.matrix)),
        plan=lambda state, _context: ClientPlan(
            fields=("delta", "control_delta"),
            weighting="uniform",
            correction="scaffold",
            arrays={"control": state.control},
        ),
        aggregate=aggregate,
        plain_sgd=True,
        # What clients send of their control variates is the change since the last one, so that the
        # server's never loses noise again, and it is in all clients' steps. After 60 rounds of
        # mnist5k there were 97.7 % without a codec and with int8, 96.2 % with eden, 95.8 % with
        # drive. int8-shared has one step, but the two fields differ by the factor T lr.
        codecs=("none", "int8"),
        codecs_why="noise would add up in the server's control variate",
    )
