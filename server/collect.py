"""One round's requests and what of the answers is fit to count."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import psutil
from flwr.app import Message

from common.errors import FedheadError, ReplyError, RunError
from common.messages import TrainReply, TrainRequest, payload_bytes
from common.types import ClientPlan, Head, UpdateBatch
from common.updates import client_weights
from common.validate import check_counts, check_fields, field_shapes
from server.engine import RoundResult, Task, check_reply
from server.exchange import error_reason, exchange

__all__ = ["Collector"]

_WAVE_BYTES = 64_000_000  # of single clients' updates; some 1,200 heads of ten classes


@dataclass(frozen=True, eq=False)
class Collector:
    """Asks a cohort and checks what comes back.

    Attributes:
        task: grid, registry and configuration.
        plan: of the round.
        head: that the clients start from.
        reduce: whether a node sends the weighted sum of its clients or each one's own fields.
        request: makes the request to some of a node's clients; with True it brings all arrays.
        result: takes the counts and the reasons of what went wrong.
        whole: who needs the updates of all clients in memory at once; empty if nobody does.
    """

    task: Task
    plan: ClientPlan
    head: Head
    reduce: Literal["sum", "individual"]
    request: Callable[[list[int], bool], TrainRequest]
    result: RoundResult
    whole: str

    def collect(self, cohort: list[int]) -> Iterator[tuple[TrainReply, UpdateBatch]]:
        """Valid replies, without their arrays, each with its rows; the others are counted.

        Raises:
            RunError: more single updates are needed at once than memory holds.
        """
        task = self.task
        by_node: dict[int, list[int]] = {}
        for client in cohort:
            by_node.setdefault(task.registry.clients[client].node, []).append(client)
        if not by_node:
            return
        size = self._clients_a_message(len(cohort), len(by_node))
        ends = time.monotonic() + task.config.round.deadline_seconds
        silent: set[int] = set()
        # One wave after the other, so that single updates never lie about in great numbers.
        for start in range(0, max(map(len, by_node.values())), size):
            wave = {node: part for node, c in by_node.items() if (part := c[start : start + size])}
            for node in silent & set(wave):
                self._no_answer(wave.pop(node))
            for reply in self._wave(wave, ends, silent):
                yield dataclasses.replace(reply, fields={}), self._batch(reply)

    def check_row(
        self,
        fields: Mapping[str, npt.NDArray[np.generic]],
        num_examples: int,
        scale: float = 1.0,
    ) -> None:
        """Refuse one row of fields that cannot be.

        Args:
            fields: arrays without the row axis.
            num_examples: that the row speaks for.
            scale: sum of the weights in it; 1 for a single client's.

        Raises:
            ReplyError: wrong shape, not finite, above the norm bound, or impossible counts.
        """
        check_fields(fields, self._shapes, self._max_norm * scale * (1 + 1e-5))
        if "moments" in fields:
            check_counts(fields, num_examples)

    @property
    def _shapes(self) -> Mapping[str, tuple[int, ...]]:
        return field_shapes(self.plan.fields, self.head.num_classes, self.head.num_features)

    @property
    def _max_norm(self) -> float:
        return self.task.config.round.max_update_norm

    def _clients_a_message(self, cohort: int, nodes: int) -> int:
        """How many clients' updates a node may send at once."""
        if self.reduce == "sum":
            return cohort
        row_bytes = 4 * sum(math.prod(shape) for shape in self._shapes.values())
        needed = 3 * row_bytes * cohort  # as they arrive, side by side, and in float64
        if self.whole and needed > (free := psutil.virtual_memory().available):
            raise RunError(
                f"{self.whole} needs the updates of all {cohort} clients at once, "
                f"{needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free: "
                "lower train.clients-per-round"
            )
        return max(1, _WAVE_BYTES // (row_bytes * nodes))

    def _wave(
        self, by_node: dict[int, list[int]], ends: float, silent: set[int]
    ) -> Iterator[TrainReply]:
        """Valid replies as they arrive, until ``ends``; nodes without one join ``silent``."""
        task, result = self.task, self.result
        for attempt in range(2):
            again = attempt > 0
            messages = [self._message(node, by_node[node], again) for node in sorted(by_node)]
            if again:
                result.downlink_bytes += sum(payload_bytes(m.content) for m in messages)
            lacking: dict[int, list[int]] = {}
            seconds = max(0.0, ends - time.monotonic())
            for node, message in exchange(task.grid, messages, seconds):
                clients = by_node.pop(node)
                reply = self._read(message, clients)
                if reply is None:
                    continue
                if (reply.missing_backbone or reply.missing_constant) and not again:
                    lacking[node] = clients
                    continue
                if reply.clients:
                    yield reply
                for client in set(clients) - {*reply.clients, *reply.rejected_clients}:
                    result.failed += 1
                    result.reasons.append(f"client {client}: not in its node's answer")
            if not lacking:
                break
            task.registry.deliver_backbone(sorted(lacking))
            by_node |= lacking
        for node, clients in by_node.items():
            silent.add(node)
            self._no_answer(clients)

    def _message(self, node: int, clients: list[int], brings_all: bool) -> Message:
        request = self.request(clients, brings_all)
        return Message(
            content=request.write(),
            dst_node_id=node,
            message_type="train",
            group_id=str(request.round_number),
        )

    def _read(self, message: Message, clients: list[int]) -> TrainReply | None:
        result = self.result
        if message.has_error():
            reason = error_reason(message)
            result.failed += len(clients)
            result.reasons += [f"client {client}: {reason}" for client in clients]
            return None
        try:
            reply = TrainReply.read(message.content)
            if not (reply.missing_backbone or reply.missing_constant):
                check_reply(reply, self.task, set(clients), self.task.fingerprint)
                self._check_rows(reply)
        except FedheadError as exc:
            for client in clients:
                result.reject(client, str(exc))
            return None
        for client, reason in zip(reply.rejected_clients, reply.rejected_reasons, strict=True):
            result.reject(client, reason)
        return reply

    def _check_rows(self, reply: TrainReply) -> None:
        if not reply.clients:
            return
        summed = self.reduce == "sum"
        rows = 1 if summed else len(reply.clients)
        for name, array in reply.fields.items():
            if array.shape[:1] != (rows,):
                raise ReplyError(
                    f"{name} has {len(array) if array.ndim else 0} rows, expected {rows}"
                )
        weights = client_weights(self.plan, np.array(reply.num_examples, np.int64))
        # The norm of a weighted mean is at most the largest norm in it.
        scale = float(weights.sum()) if summed else 1.0
        for row in range(rows):
            fields = {k: v[row] for k, v in reply.fields.items()}
            count = sum(reply.num_examples) if summed else reply.num_examples[row]
            self.check_row(fields, count, scale)

    def _batch(self, reply: TrainReply) -> UpdateBatch:
        examples = np.array(reply.num_examples, np.int64)
        weights = client_weights(self.plan, examples)
        if self.reduce == "sum":
            return UpdateBatch(
                client_ids=(reply.clients,),
                num_examples=examples.sum(keepdims=True),
                weights=weights.sum(keepdims=True),
                fields=reply.fields,
            )
        ids = tuple((client,) for client in reply.clients)
        return UpdateBatch(ids, examples, weights, reply.fields)

    def _no_answer(self, clients: list[int]) -> None:
        self.result.failed += len(clients)
        self.result.reasons += [f"client {client}: no answer" for client in clients]
