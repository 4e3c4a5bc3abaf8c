"""Sends one round's requests and finds the valid answers."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from flwr.app import Message

from common.errors import FedheadError
from common.messages import TrainReply, TrainRequest, payload_bytes
from common.types import ClientPlan, Head, UpdateBatch
from server.record.events import event
from server.record.untold import UNTOLD_REASON
from server.round.algorithm import RoundResult, Run
from server.round.exchange import Exchange, error_reason, is_from_device
from server.round.gateways import asked_again
from server.round.memory import clients_a_message
from server.round.reading import Reader
from server.round.result import read_phases

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

    @property
    def reader(self) -> Reader:
        """Reads the answers."""
        return Reader(self.run, self.plan, self.head, self.reduce, self.result.round_number)

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
            layouts = self.reader.layouts.values()
            row_bytes = 4 * sum(math.prod(layout.shape) for layout in layouts)
            size = clients_a_message(row_bytes, len(cohort), len(by_node), self.needs_all)
        ends = time.monotonic() + run.config.round.deadline_seconds
        silent: set[int] = set()
        # In waves, so that only a limited number of single updates is in memory.
        for start in range(0, max(map(len, by_node.values())), size):
            wave = {node: part for node, c in by_node.items() if (part := c[start : start + size])}
            for node in silent & set(wave):
                self._fail_silent(node, wave.pop(node))
            # Each wave of a gateway's phones gets its share of the time.
            share = {node: len(part) / len(by_node[node][start:]) for node, part in wave.items()}
            for reply, rows in self._wave(wave, ends, silent, share):
                self.result.valid += len(reply.reports)
                yield dataclasses.replace(reply, payloads={}), rows

    def _wave(
        self,
        by_node: dict[int, list[int]],
        ends: float,
        silent: set[int],
        share: Mapping[int, float],
    ) -> Iterator[_Valid]:
        """Valid replies until the round closes; nodes without an answer are added to ``silent``."""
        run, missed = self.run, dict[int, list[int]]()
        for attempt in range(2):
            again = attempt > 0
            requests = {node: self.request(by_node[node], again) for node in sorted(by_node)}

            def message(node: int, requests: Mapping[int, TrainRequest] = requests) -> Message:
                return self._message(node, requests[node], ends, share[node])

            messages = [message(node) for node in requests]
            if again:
                for sent in messages:
                    first = by_node[sent.metadata.dst_node_id][:1]
                    self.result.send(first, payload_bytes(sent.content))
            exchange = self._exchange(messages, ends, message)
            lacking: dict[int, TrainReply] = {}
            yield from self._answers(exchange, requests, by_node, None if again else lacking)
            run.registry.stragglers.add(self.result.round_number, exchange, self._owing(by_node))
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

    def _answers(
        self,
        exchange: Exchange,
        requests: Mapping[int, TrainRequest],
        by_node: dict[int, list[int]],
        lacking: dict[int, TrainReply] | None,
    ) -> Iterator[_Valid]:
        """Valid replies until the round closes.

        Args:
            exchange: the messages.
            requests: by node.
            by_node: the asked clients; a node that has answered is taken out.
            lacking: receives the replies of nodes that have not got all that they need; None: this
                was a second attempt.
        """
        for node, answer in exchange:
            clients = by_node.pop(node)
            reply, rows = self._read(node, answer, requests[node])
            if reply is None:
                continue
            if reply.lacks and lacking is not None:
                lacking[node] = reply
                continue
            if rows is not None:
                yield reply, rows
            left_out = set(clients) - {*reply.clients, *reply.rejected_clients}
            self._fail(node, sorted(left_out), "not in its node's answer")
            if self._has_enough():
                break

    def _exchange(
        self, messages: Sequence[Message], ends: float, message: Callable[[int], Message]
    ) -> Exchange:
        """The sent messages; those to gateways are sent again while no answer comes."""
        run, known = self.run, self.run.registry
        asked = [one.metadata.dst_node_id for one in messages]
        return Exchange(
            run.grid,
            messages,
            max(0.0, ends - time.monotonic()),
            known.look,
            known.refuse_in_round,
            asked_again(known, asked, run.config.round.deadline_seconds, message),
        )

    def _owing(self, by_node: Mapping[int, list[int]]) -> dict[int, list[int]]:
        """Clients of devices that still owe an answer; a gateway's phones are free again."""
        known = self.run.registry
        return {node: part for node, part in by_node.items() if not known.is_gateway(node)}

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
            self.result.miss(clients, "over-selected")
            if self.result.privacy.hides_cohorts:
                return
            message = f"round {number}: closed with {valid} valid updates, {len(clients)} to come"
            event("closed", message, round=number, valid=valid, missing=len(clients))
            return
        for node, part in sorted(by_node.items()):
            self._fail_silent(node, part)

    def _fail_silent(self, node: int, clients: Sequence[int]) -> None:
        if self.run.registry.is_gateway(node):
            self.result.fail_phones(clients, "no answer", "silent")
            return
        for client in clients:
            self.result.fail([client], self.run.registry.silence(client), "silent")

    def _fail(self, node: int, clients: Sequence[int], reason: str) -> None:
        if self.run.registry.is_gateway(node):
            self.result.fail_phones(clients, reason)
        else:
            self.result.fail(clients, reason)

    def _message(self, node: int, request: TrainRequest, ends: float, share: float) -> Message:
        if self.run.registry.is_gateway(node):
            request = dataclasses.replace(
                request,
                seconds=share * max(0.0, ends - time.monotonic()),
                enough=self._enough(len(request.clients)),
            )
        return Message(
            content=request.write(),
            dst_node_id=node,
            message_type="train",
            group_id=str(request.round_number),
        )

    def _enough(self, clients: int) -> int:
        """How many updates of so many clients suffice: their share of what the round wants."""
        cohort, wanted = max(self.result.cohort, clients), self.result.wanted
        return min(clients, math.ceil(wanted * clients / cohort - 1e-9))

    def _read(
        self, node: int, message: Message, request: TrainRequest
    ) -> tuple[TrainReply | None, UpdateBatch | None]:
        """A node's reply if it is valid, and its rows if it has any that count."""
        if self.run.registry.is_gateway(node):
            return self._read_phones(message, request)
        result, clients = self.result, list(request.clients)
        is_told = not (self.run.registry.simulated or result.privacy.hides_cohorts)
        if is_told and is_from_device(message):
            result.accounts.see(clients)
        if message.has_error():
            result.fail_with(clients, message)
            return None, None
        try:
            reply, rows = self.reader.read(message.content, request)
        except FedheadError as exc:
            for client in clients:
                result.reject(client, str(exc))
            return None, None
        for rejection in reply.rejected:
            result.reject(rejection.client, rejection.reason)
        return reply, rows

    def _read_phones(
        self, message: Message, request: TrainRequest
    ) -> tuple[TrainReply | None, UpdateBatch | None]:
        """The same of a gateway: what is wrong with it is not its phones' fault."""
        result, private = self.result, self.result.privacy
        try:
            if message.has_error():
                raise FedheadError(error_reason(message))
            reply, rows = self.reader.read(message.content, request)
        except FedheadError as exc:
            result.fail_phones(request.clients, UNTOLD_REASON if private.active else str(exc))
            return None, None
        enough = len(reply.reports) >= self._enough(len(request.clients))
        result.drop_out({no.client: no.reason for no in reply.rejected}, enough=enough)
        if not private.hides_cohorts:
            result.accounts.see(reply.clients)
        if reply.phases and not private.active:
            result.phase_seconds = read_phases(reply.phases)
        return reply, rows
