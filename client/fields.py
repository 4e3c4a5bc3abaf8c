"""What a client adds to its gradients from memory, and what it makes of its delta to send it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from client.memory import ControlStore
from common.errors import FedheadError
from common.messages import TrainRequest
from common.types import FloatArray, IntArray, LocalTraining
from common.validate import check_fields

__all__ = ["ClientFields", "effective_steps"]

Fields = dict[str, npt.NDArray[np.generic]]


class ClientFields:
    """The fields that a round's plan asks of clients that train.

    Args:
        request: of the round.
        store: what clients remember: c_i of SCAFFOLD, g_i of FedDyn.
    """

    def __init__(self, request: TrainRequest, store: ControlStore) -> None:
        self._request, self._store = request, store
        self._own: dict[int, FloatArray | FedheadError] = {}
        self._counted = dict(zip(request.clients, request.counted, strict=False))

    @property
    def corrects(self) -> bool:
        """Whether clients add something of their own to each gradient."""
        return self._request.plan.correction != "none"

    def corrections(self, clients: IntArray) -> FloatArray:
        """What each adds, (m, K, d + 1); zeros for one whose file is damaged."""
        plan, shape = self._request.plan, self._request.head.matrix.shape
        out = np.zeros((len(clients), *shape), np.float32)
        for row, client in zip(out, clients.tolist(), strict=True):
            try:
                own = self._store.load(client, self._counted.get(client, 0), shape)
            except FedheadError as exc:
                self._own[client] = exc
                continue
            self._own[client] = own
            row[:] = (plan.arrays["control"] if plan.correction == "scaffold" else 0) - own
        return out

    def remember(self, client: int, control: FloatArray) -> None:
        """Keep what ``of`` gave for the next round.

        Raises:
            FedheadError: the disk does not let it.
        """
        self._store.save(
            client,
            self._request.round_number,
            control,
            counted_round=self._counted.get(client, 0),
            oldest_round=self._request.oldest_round,
        )

    def of(
        self, client: int, delta: FloatArray, *, steps: int, loss: float
    ) -> tuple[Fields, FloatArray | None]:
        """What one client sends, and what it remembers once that has passed all checks.

        Args:
            client: its id; ``corrections`` has been asked for it if the plan corrects.
            delta: float32 (K, d + 1), local minus global head.
            steps: SGD steps it took.
            loss: mean cross-entropy of the global head on its examples.

        Raises:
            FedheadError: what it remembers is damaged, or its delta is not fit to count.
        """
        plan, lr = self._request.plan, self._request.training.lr
        made: Fields = {"delta": delta}
        check_fields(made, {"delta": delta.shape}, self._request.max_norm)
        control: FloatArray | None = None
        if self.corrects:
            own = self._own.pop(client)
            if isinstance(own, FedheadError):
                raise own
            if plan.correction == "scaffold":
                # Option II of the paper: c_i+ - c_i = -c + (w - y) / (T lr)
                change = -plan.arrays["control"] - delta / np.float32(steps * lr)
                made["control_delta"] = change
            else:
                change = -np.float32(plan.mu) * delta
            control = own + change
        if "normalized_delta" in plan.fields:
            count = effective_steps(self._request.training, plan.mu, steps)
            made["normalized_delta"] = delta / np.float32(count)
            made["effective_steps"] = np.array([count], np.float32)
        if "fair_delta" in plan.fields:
            made["fair_delta"], made["fair_scale"] = _fair(delta, loss, plan.q, lr)
        return {name: made[name] for name in plan.fields}, control


def _fair(delta: FloatArray, loss: float, q: float, lr: float) -> tuple[FloatArray, FloatArray]:
    """q-FedAvg's F^q delta and q F^(q - 1) ||g||^2 + F^q / lr, with g = -delta / lr."""
    loss = max(loss, 1e-10)  # a client without any loss has no say, and no division by zero
    squared = float(np.square(delta.astype(np.float64)).sum()) / lr**2
    scale = q * loss ** (q - 1) * squared + loss**q / lr
    return np.float32(loss**q) * delta, np.array([scale], np.float32)


def effective_steps(training: LocalTraining, mu: float, steps: int) -> float:
    """FedNova's a_i: how far equal gradients would carry the head, in learning rates.

    >>> effective_steps(LocalTraining(0.1), 0.0, 5)
    5.0
    >>> round(effective_steps(LocalTraining(0.1, momentum=0.5), 0.0, 3), 3)  # 1 + 1.5 + 1.75
    4.25
    """
    velocity = total = 0.0
    for _ in range(steps):
        velocity = training.momentum * velocity + 1 - training.lr * mu * total
        total += velocity
    return total
