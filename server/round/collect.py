"""Sends one round's requests and finds the valid answers."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from flwr.app import Message, RecordDict

from common.codecs.uplink import Uplink, decode_sum
from common.errors import FedheadError, ReplyError
from common.fields import check_plausible
from common.messages import TrainReply, TrainRequest, payload_bytes
from common.plausible import Limits
from common.types import ClientPlan, Head, Layout, UpdateBatch
from common.updates import added_up, client_weights
from common.validate import LARGEST, check_fields
from server.record.events import event
from server.round.algorithm import RoundResult, Run
from server.round.exchange import Exchange, is_from_device
from server.round.memory import clients_a_message
from server.round.replies import (
    check_lacks,
    check_lengths,
    check_payloads,
    check_reply,
    check_size,
    weighed,
)

__all__ = ["Collector"]

_Valid = tuple[TrainReply, UpdateBatch]

_DELIVERY = 2 / 3  # share of a round's remaining time for sending missing backbones or constants


@dataclass(frozen=True, eq=False)
class Collector:
    """Asks a cohort and checks the replies.

    Attributes:
        run: grid, registry and configuration.
        plan: the round's plan.
        head: the head that the clients start from.
        reduce: whether a node sends the weighted sum of its clients or each client's fields.
        request: makes the request to some of a node's clients; with True, it always includes the
            whole head and the plan's constant arrays.
        result: receives the counts and the reasons of failures.
        needs_all: name of what needs all clients' updates in memory at once; empty if nothing.
    """

    run: Run
    plan: ClientPlan
    head: Head
    reduce: Literal["sum", "individual"]
    request: Callable[[list[int], bool], TrainRequest]
    result: RoundResult
    needs_all: str

    def collect(self, cohort: list[int]) -> Iterator[_Valid]:
        """Valid replies with their rows and without payloads; the others are only counted.

        Raises:
            RunError: the memory cannot hold all single updates that are needed at once.
        """
        run = self.run
        by_node: dict[int, list[int]] = {}
        for client in cohort:
            by_node.setdefault(run.registry.clients[client].node, []).append(client)
        if not by_node:
            return
        size = len(cohort)
        if self.reduce != "sum":
            row_bytes = 4 * sum(math.prod(layout.shape) for layout in self._layouts.values())
            size = clients_a_message(row_bytes, len(cohort), len(by_node), self.needs_all)
        ends = time.monotonic() + run.config.round.deadline_seconds
        silent: set[int] = set()
        # In waves, so that only a limited number of single updates is in memory.
        for start in range(0, max(map(len, by_node.values())), size):
            wave = {node: part for node, c in by_node.items() if (part := c[start : start + size])}
            for node in silent & set(wave):
                self._fail_silent(wave.pop(node))
            for reply, rows in self._wave(wave, ends, silent):
                self.result.valid += len(reply.reports)
                yield dataclasses.replace(reply, payloads={}), rows

    def check_row(
        self,
        fields: Mapping[str, npt.NDArray[np.generic]],
        num_examples: int,
        scale: float = 1.0,
        clients: int = 1,
    ) -> None:
        """Refuse an invalid row of fields.

        Args:
            fields: arrays without the row axis.
            num_examples: number of examples behind the row.
            scale: sum of the weights in the row; 1 for a single client.
            clients: number of clients whose fields were added up in the row.

        Raises:
            ReplyError: it has a wrong shape, is not finite, is above the norm bound or has
                impossible counts.
        """
        check_fields(fields, self._layouts, self.run.max_norm * scale * (1 + 1e-5), LARGEST * scale)
        steps = scale * self.run.config.train.local(1).most_steps(num_examples)
        rounding = self._uplink.codec.rounding
        check_plausible(fields, Limits(num_examples, steps, rounding, clients))

    @property
    def _layouts(self) -> Mapping[str, Layout]:
        return self._uplink.layouts

    @property
    def _uplink(self) -> Uplink:
        """The encoding that the request asks for."""
        head, seed = self.head, self.run.config.seed
        number = self.result.round_number
        return Uplink(self.plan, head.num_classes, head.num_features, seed, number)

    def _wave(
        self, by_node: dict[int, list[int]], ends: float, silent: set[int]
    ) -> Iterator[_Valid]:
        """Valid replies until the round closes; nodes without an answer are added to ``silent``."""
        run, missed = self.run, dict[int, list[int]]()
        for attempt in range(2):
            again = attempt > 0
            requests = {node: self.request(by_node[node], again) for node in sorted(by_node)}
            messages = [self._message(node, request) for node, request in requests.items()]
            if again:
                for message in messages:
                    first = by_node[message.metadata.dst_node_id][:1]
                    self.result.send(first, payload_bytes(message.content))
            lacking: dict[int, TrainReply] = {}
            seconds = max(0.0, ends - time.monotonic())
            known = run.registry
            exchange = Exchange(run.grid, messages, seconds, known.look, known.refuse_in_round)
            for node, message in exchange:
                clients = by_node.pop(node)
                reply, rows = self._read(message, requests[node])
                if reply is None:
                    continue
                if reply.lacks and not again:
                    lacking[node] = reply
                    continue
                if rows is not None:
                    yield reply, rows
                left_out = set(clients) - {*reply.clients, *reply.rejected_clients}
                self.result.fail(sorted(left_out), "not in its node's answer")
                if self._has_enough():
                    break
            run.registry.stragglers.add(self.result.round_number, exchange, by_node)
            missed |= by_node
            by_node = {node: list(requests[node].clients) for node in lacking}
            if not lacking or self._has_enough():
                break
            # Only a part of the remaining time, so that silent nodes do not cost others the round.
            seconds = _DELIVERY * max(0.0, ends - time.monotonic())
            without = [node for node, reply in lacking.items() if reply.missing_backbone]
            run.registry.deliver_backbone(sorted(without), seconds, in_round=True)
        silent |= set(missed)
        self._close(missed | by_node)

    def _has_enough(self) -> bool:
        """Whether a round of real devices has enough updates and can close.

        For simulated clients, the simulated clock has already decided whose answers are in time.
        """
        result = self.result
        return not self.run.registry.simulated and result.valid >= result.wanted

    def _close(self, by_node: Mapping[int, list[int]]) -> None:
        """Count clients without an answer: slower than the others, or past the deadline."""
        clients = sorted(client for some in by_node.values() for client in some)
        if clients and self._has_enough():
            number, valid = self.result.round_number, self.result.valid
            self.result.miss(clients)
            if self.result.privacy.hides_cohorts:
                return
            message = f"round {number}: closed with {valid} valid updates, {len(clients)} to come"
            event("closed", message, round=number, valid=valid, missing=len(clients))
        else:
            self._fail_silent(clients)

    def _fail_silent(self, clients: Sequence[int]) -> None:
        for client in clients:
            self.result.fail([client], self.run.registry.silence(client))

    def _message(self, node: int, request: TrainRequest) -> Message:
        return Message(
            content=request.write(),
            dst_node_id=node,
            message_type="train",
            group_id=str(request.round_number),
        )

    def _read(
        self, message: Message, request: TrainRequest
    ) -> tuple[TrainReply | None, UpdateBatch | None]:
        """A node's reply if it is valid, and its rows if it has any that count."""
        result, clients = self.result, list(request.clients)
        is_told = not (self.run.registry.simulated or result.privacy.hides_cohorts)
        if is_told and is_from_device(message):
            result.accounts.see(clients)
        if message.has_error():
            result.fail_with(clients, message)
            return None, None
        try:
            reply, rows = self._checked(message.content, request)
        except FedheadError as exc:
            for client in clients:
                result.reject(client, str(exc))
            return None, None
        for rejection in reply.rejected:
            result.reject(rejection.client, rejection.reason)
        return reply, rows

    def _checked(
        self, content: RecordDict, request: TrainRequest
    ) -> tuple[TrainReply, UpdateBatch | None]:
        """A fully checked reply.

        Raises:
            FedheadError: something in it is wrong.
        """
        clients = request.clients
        check_lengths(content, len(clients))
        layouts = self._layouts.values()
        rows = 1 if self.reduce == "sum" else len(clients)
        check_size(content, layouts, rows, clients=len(clients))
        reply = TrainReply.read(content)
        check_lacks(reply, request)
        if reply.lacks:
            # Nothing else in the reply has been checked.
            return dataclasses.replace(reply, reports=(), rejected=(), payloads={}), None
        check_reply(reply, self.run, set(clients), self.run.fingerprint)
        check_payloads(reply, layouts)
        if len(clients) == 1 and not self.run.registry.simulated:
            reply = weighed(reply, content)
        return reply, self._batch(reply) if reply.reports else None

    def _batch(self, reply: TrainReply) -> UpdateBatch:
        """A reply's rows, decoded and checked; one row if sums are wanted."""
        clients, uplink = reply.clients, self._uplink
        examples = np.array([report.num_examples for report in reply.reports], np.int64)
        weights = client_weights(self.plan, examples)
        payloads = self._rows(reply)
        if self.reduce == "sum" and uplink.is_summed(len(clients)):
            fields = decode_sum(payloads[0], self._layouts)
            # The norm of a weighted mean is at most the largest norm in it.
            self.check_row(fields, int(examples.sum()), float(weights.sum()), len(clients))
            return UpdateBatch(
                client_ids=(clients,),
                num_examples=examples.sum(keepdims=True),
                weights=weights.sum(keepdims=True),
                fields={name: array[None] for name, array in fields.items()},
            )
        rows = [uplink.decode(*pair) for pair in zip(clients, payloads, strict=True)]
        for row, count in zip(rows, examples.tolist(), strict=True):
            self.check_row(row, count)
        batch = UpdateBatch(
            client_ids=tuple((client,) for client in clients),
            num_examples=examples,
            weights=weights,
            fields={name: np.stack([row[name] for row in rows]) for name in self.plan.fields},
        )
        return added_up(batch) if self.reduce == "sum" else batch

    def _rows(self, reply: TrainReply) -> list[dict[str, bytes]]:
        """A reply's payloads, row by row.

        Raises:
            ReplyError: the fields or the number of rows are wrong.
        """
        count = len(reply.reports)
        if self.reduce == "sum" and self._uplink.is_summed(count):
            count = 1
        if set(reply.payloads) != set(self.plan.fields):
            raise ReplyError(
                f"sent the fields {sorted(reply.payloads)}, expected {sorted(self.plan.fields)}"
            )
        for name, rows in reply.payloads.items():
            if len(rows) != count:
                raise ReplyError(f"{name} has {len(rows)} rows, expected {count}")
        return [{name: rows[i] for name, rows in reply.payloads.items()} for i in range(count)]
