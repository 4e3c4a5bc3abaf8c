"""One round of a node's clients: their memories, and the fields that they make from a delta."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from client.memory import ClientMemory
from common.corrections import find_correction
from common.errors import FedheadError
from common.fields import Memory, Trained, fields_of_training
from common.messages import TrainRequest
from common.types import FloatArray, IntArray, Layout
from common.validate import check_fields

__all__ = ["ClientRound"]

Fields = Mapping[str, npt.NDArray[np.generic]]


class ClientRound:
    """Shared by a node's training clients in one round; threads may work on different clients.

    Args:
        request: the round's request.
        memory: the memory of all the node's clients.
    """

    def __init__(self, request: TrainRequest, memory: ClientMemory) -> None:
        self.request, self._store = request, memory
        self._row = find_correction(request.plan.correction)
        head = request.head
        self._shapes = self._row.shapes(head.num_classes, head.num_features)
        self._layouts = request.uplink.layouts
        self._memory_rounds = dict(zip(request.clients, request.memory_rounds, strict=False))
        self._recalled: dict[int, Memory | FedheadError] = {}

    @property
    def remembers(self) -> bool:
        """Whether the plan makes clients remember anything."""
        return bool(self._shapes)

    @property
    def corrects(self) -> bool:
        """Whether clients add something to each gradient."""
        return self._row.gradient is not None

    def corrections(self, clients: IntArray) -> FloatArray:
        """Each client's addition, float32 (m, K, d + 1); zeros if its memory is damaged."""
        out = np.zeros((len(clients), *self.request.head.matrix.shape), np.float32)
        for row, client in zip(out, clients.tolist(), strict=True):
            memory = self._recall(client)
            if self._row.gradient is not None and not isinstance(memory, FedheadError):
                row[:] = self._row.gradient(self.request.plan, memory)
        return out

    def _recall(self, client: int) -> Memory | FedheadError:
        """A client's memory, read once in a round. ``finish`` raises the error, if any."""
        if client not in self._recalled:
            try:
                self._recalled[client] = self._store.load(
                    client, self._memory_rounds.get(client, 0), self._shapes
                )
            except FedheadError as exc:
                self._recalled[client] = exc
        return self._recalled[client]

    def finish(self, client: int, delta: FloatArray, *, steps: int, loss: float) -> Fields:
        """The fields that one client sends. If they pass all checks, its new memory is saved.

        Args:
            client: its id.
            delta: float32 (K, d + 1), local minus global head.
            steps: SGD steps that it took.
            loss: mean cross-entropy of the global head on its examples.

        Raises:
            FedheadError: its memory is damaged or cannot be written, or its update must not be
                aggregated.
        """
        request = self.request
        if not request.plan.private:  # an error could tell a number; the clip needs no other bound
            check_fields({"delta": delta}, {"delta": Layout(delta.shape)}, request.max_norm)
        memory = self._recall(client)
        del self._recalled[client]
        if isinstance(memory, FedheadError):
            raise memory
        trained = Trained(delta, steps, loss, request.training, request.plan, memory)
        fields = fields_of_training(request.plan.fields, trained)
        self.check(fields)
        if self.remembers:
            remembered = self._row.remember(trained)
            layouts = {name: Layout(shape) for name, shape in self._shapes.items()}
            check_fields(remembered, layouts, 0.0)
            self._store.save(
                client,
                request.round_number,
                remembered,
                counted_round=self._memory_rounds.get(client, 0),
                oldest_round=request.oldest_round,
            )
        return fields

    def check(self, fields: Fields) -> None:
        """Refuse an update that the server would refuse.

        Raises:
            ReplyError: says why it is refused.
        """
        check_fields(fields, self._layouts, self.request.max_norm)
