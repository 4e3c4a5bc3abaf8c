"""One round by a Strategy: plan, exchange, validate, aggregate."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import psutil
from flwr.app import Message

from common.config import AvailabilityConfig
from common.errors import FedheadError, ReplyError, RunError
from common.experiment import malicious_clients
from common.messages import TrainReply, TrainRequest, payload_bytes
from common.types import ClientPlan, Head, IntArray, UpdateBatch
from common.updates import added_up, client_weights, joined, taken
from common.validate import check_counts, check_fields, field_shapes
from server.attacks import corrupt
from server.availability import simulate
from server.checkpoint import Checkpoint, restore_state
from server.engine import RoundResult, Task, check_reply, sample_cohort
from server.exchange import error_reason, exchange
from server.strategy import Strategy

__all__ = ["StrategyEngine"]

logger = logging.getLogger("fedhead")

_WAVE_BYTES = 64_000_000  # of single clients' updates; some 1,200 heads of ten classes


@dataclass(frozen=True, eq=False)
class _EngineState:
    """What a checkpoint keeps.

    Attributes:
        strategy: the strategy's own state.
        clients: int64 (m,), those that remember something of their own.
        counted: int64 (m,), the last round in which each one's update counted.
    """

    strategy: Any
    clients: IntArray
    counted: IntArray


class StrategyEngine:
    """Runs a Strategy: nodes train their clients and send sums or single updates."""

    def __init__(self, task: Task, strategy: Strategy[Any]) -> None:
        self._task, self._strategy = task, strategy
        self.personal = strategy.personal
        self._state: Any = None
        self._counted: dict[int, int] = {}
        self._measured: dict[tuple[object, ...], int] = {}

    @property
    def state(self) -> _EngineState:
        clients = sorted(self._counted)
        rounds = [self._counted[client] for client in clients]
        return _EngineState(self._state, np.array(clients, np.int64), np.array(rounds, np.int64))

    def start(self, head: Head, checkpoint: Checkpoint | None) -> None:
        self._state, self._counted = self._strategy.init(head), {}
        if checkpoint is not None:
            kept = restore_state(self.state, checkpoint)
            self._state = kept.strategy
            self._counted = dict(zip(kept.clients.tolist(), kept.counted.tolist(), strict=True))

    def step(self, round_number: int, head: Head) -> tuple[Head, RoundResult] | None:
        config, task = self._task.config, self._task
        plan = self._strategy.plan(self._state, round_number)
        excluded = set(plan.exclude)
        cohort = sample_cohort(
            [client for client in task.registry.clients if client not in excluded],
            0 if plan.everyone else config.train.clients_per_round,
            config.seed,
            round_number,
        )
        if not cohort:
            return None
        started = time.perf_counter()
        result = RoundResult(cohort=len(cohort))
        result.downlink_bytes = self._request_bytes(round_number, head, plan) * len(cohort)
        present = self._answering(round_number, plan, cohort, result)
        needed = max(1.0, config.round.quorum * len(cohort))
        if len(present) < needed:
            present = []  # the round is lost already: nobody need train for it
        valid = list(self._exchange(round_number, head, plan, present, result))
        valid.sort(key=lambda pair: min(pair[0].clients))
        if valid and self._corrupts(plan):
            valid = self._corrupted(round_number, head, plan, valid, result)
        result.count([reply for reply, _ in valid])
        if result.valid >= needed:
            batch = joined([batch for _, batch in valid])
            head, result.accepted = self._aggregate(round_number, head, batch)
            if result.accepted and plan.correction != "none":
                clients = [client for reply, _ in valid for client in reply.clients]
                self._counted |= dict.fromkeys(clients, round_number)
        else:
            logger.warning(
                "round %d: %d of %d updates are valid, the quorum is %g: head unchanged",
                round_number, result.valid, len(cohort), config.round.quorum,
            )  # fmt: skip
        result.train_seconds = time.perf_counter() - started
        return head, result

    def _answering(
        self, round_number: int, plan: ClientPlan, cohort: list[int], result: RoundResult
    ) -> list[int]:
        """The clients that simulated availability leaves."""
        task, config = self._task, self._task.config
        if config.availability == AvailabilityConfig():
            return cohort
        epochs = config.train.local_epochs if plan.kind == "sgd" else 1
        outcome = simulate(
            cohort,
            {client: task.registry.clients[client].num_examples * epochs for client in cohort},
            config.availability,
            seed=config.seed,
            round_number=round_number,
        )
        result.dropped, result.late = outcome.dropped, outcome.late
        result.failed += outcome.dropped + outcome.late
        result.simulated_seconds = outcome.seconds
        return list(outcome.present)

    def _corrupts(self, plan: ClientPlan) -> bool:
        """Whether malicious clients may send something else than what they computed."""
        return self._task.config.attack.changes_updates and not plan.everyone

    def _corrupted(
        self,
        round_number: int,
        head: Head,
        plan: ClientPlan,
        valid: list[tuple[TrainReply, UpdateBatch]],
        result: RoundResult,
    ) -> list[tuple[TrainReply, UpdateBatch]]:
        """The same once malicious clients have seen all; what is not fit to count is refused."""
        config = self._task.config
        rows = corrupt(
            joined([rows for _, rows in valid]),
            malicious_clients(config),
            config.attack,
            plan,
            seed=config.seed,
            round_number=round_number,
        )
        shapes = field_shapes(plan.fields, head.num_classes, head.num_features)
        counted, end = [], 0
        for reply, _ in valid:
            start, end = end, end + len(reply.clients)
            good = []
            for i in range(start, end):
                fields = {name: array[i] for name, array in rows.fields.items()}
                try:
                    self._check_row(fields, shapes, int(rows.num_examples[i]))
                except ReplyError as exc:
                    result.reject(rows.client_ids[i][0], str(exc))
                else:
                    good.append(i)
            if good:
                own = reply.only([i - start for i in good])
                counted.append((own, self._digested(head, taken(rows, good))))
        return counted

    def _digested(self, head: Head, rows: UpdateBatch) -> UpdateBatch:
        """Single clients' rows as ``aggregate`` wants them."""
        strategy = self._strategy
        if strategy.each is not None:
            return added_up(strategy.each(self._state, head, rows))
        return added_up(rows) if strategy.reduce == "sum" else rows

    def _aggregate(self, round_number: int, head: Head, updates: UpdateBatch) -> tuple[Head, bool]:
        """The next head; the old one, and the old state, where aggregation gives no numbers."""
        try:
            state, new = self._strategy.aggregate(self._state, head, updates)
        except np.linalg.LinAlgError as exc:
            logger.warning("round %d: aggregation failed (%s): head unchanged", round_number, exc)
            return head, False
        if not np.isfinite(new.matrix).all():
            logger.warning("round %d: the new head is not finite: head unchanged", round_number)
            return head, False
        self._state = state
        return new, True

    def _reduce(self, plan: ClientPlan) -> Literal["sum", "individual"]:
        if self._corrupts(plan):
            return "individual"
        return "sum" if plan.everyone else self._strategy.reduce

    def _request(
        self, round_number: int, head: Head, plan: ClientPlan, clients: list[int]
    ) -> TrainRequest:
        config = self._task.config
        return TrainRequest(
            head=head,
            plan=plan,
            training=config.train.local(),
            clients=tuple(clients),
            round_number=round_number,
            run_id=self._task.run_id,
            seed=config.seed,
            fingerprint=self._task.fingerprint,
            reduce=self._reduce(plan),
            max_norm=config.round.max_update_norm,
            counted=(
                ()
                if plan.correction == "none"
                else tuple(self._counted.get(client, 0) for client in clients)
            ),
        )

    def _request_bytes(self, round_number: int, head: Head, plan: ClientPlan) -> int:
        """What a request to one client alone weighs; measured again when its layout changes."""
        shapes = {name: array.shape for name, array in plan.arrays.items()}
        layout = (plan.kind, plan.fields, tuple(shapes.items()), round_number.bit_length())
        if layout not in self._measured:
            alone = self._request(round_number, head, plan, [0])
            self._measured[layout] = payload_bytes(alone.write())
        return self._measured[layout]

    def _exchange(
        self,
        round_number: int,
        head: Head,
        plan: ClientPlan,
        cohort: list[int],
        result: RoundResult,
    ) -> Iterator[tuple[TrainReply, UpdateBatch]]:
        """Valid replies only, with what to aggregate of them; the others are counted and named."""
        task = self._task
        by_node: dict[int, list[int]] = {}
        for client in cohort:
            by_node.setdefault(task.registry.clients[client].node, []).append(client)
        if not by_node:
            return
        size = self._clients_a_message(plan, head, len(cohort), len(by_node))
        ends = time.monotonic() + task.config.round.deadline_seconds
        silent: set[int] = set()
        # One wave after the other, so that single updates never lie about in great numbers.
        for start in range(0, max(map(len, by_node.values())), size):
            wave = {node: part for node, c in by_node.items() if (part := c[start : start + size])}
            for node in silent & set(wave):
                _no_answer(wave.pop(node), result)
            for reply in self._wave(round_number, head, plan, wave, ends, silent, result):
                batch = self._batch(plan, reply)
                if self._strategy.each and not (plan.everyone or self._corrupts(plan)):
                    batch = self._digested(head, batch)
                yield dataclasses.replace(reply, fields={}), batch

    def _clients_a_message(self, plan: ClientPlan, head: Head, cohort: int, nodes: int) -> int:
        """How many clients' updates a node may send at once.

        Raises:
            RunError: the strategy needs more single updates at once than memory holds.
        """
        if self._reduce(plan) == "sum":
            return cohort
        shapes = field_shapes(plan.fields, head.num_classes, head.num_features)
        row_bytes = 4 * sum(math.prod(shape) for shape in shapes.values())
        needed = 3 * row_bytes * cohort  # as they arrive, side by side, and in float64
        at_once = self._strategy.each is None or self._corrupts(plan)
        if at_once and needed > (free := psutil.virtual_memory().available):
            who = "an attack" if self._corrupts(plan) else self._strategy.name
            raise RunError(
                f"{who} needs the updates of all {cohort} clients at once, "
                f"{needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free: "
                "lower train.clients-per-round"
            )
        return max(1, _WAVE_BYTES // (row_bytes * nodes))

    def _wave(
        self,
        round_number: int,
        head: Head,
        plan: ClientPlan,
        by_node: dict[int, list[int]],
        ends: float,
        silent: set[int],
        result: RoundResult,
    ) -> Iterator[TrainReply]:
        """Valid replies as they arrive, until ``ends``; nodes without one join ``silent``."""
        task = self._task
        for attempt in range(2):
            messages = [
                Message(
                    content=self._request(round_number, head, plan, clients).write(),
                    dst_node_id=node,
                    message_type="train",
                    group_id=str(round_number),
                )
                for node, clients in sorted(by_node.items())
            ]
            lacking: dict[int, list[int]] = {}
            seconds = max(0.0, ends - time.monotonic())
            for node, message in exchange(task.grid, messages, seconds):
                clients = by_node.pop(node)
                reply = self._read(message, clients, plan, head, result)
                if reply is None:
                    continue
                if reply.missing_backbone and attempt == 0:
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
            _no_answer(clients, result)

    def _read(
        self,
        message: Message,
        clients: list[int],
        plan: ClientPlan,
        head: Head,
        result: RoundResult,
    ) -> TrainReply | None:
        if message.has_error():
            reason = error_reason(message)
            result.failed += len(clients)
            result.reasons += [f"client {client}: {reason}" for client in clients]
            return None
        try:
            reply = TrainReply.read(message.content)
            if not reply.missing_backbone:
                check_reply(reply, self._task, set(clients), self._task.fingerprint)
                self._check_rows(reply, plan, head)
        except FedheadError as exc:
            for client in clients:
                result.reject(client, str(exc))
            return None
        for client, reason in zip(reply.rejected_clients, reply.rejected_reasons, strict=True):
            result.reject(client, reason)
        return reply

    def _check_rows(self, reply: TrainReply, plan: ClientPlan, head: Head) -> None:
        if not reply.clients:
            return
        shapes = field_shapes(plan.fields, head.num_classes, head.num_features)
        summed = self._reduce(plan) == "sum"
        rows = 1 if summed else len(reply.clients)
        for name, array in reply.fields.items():
            if array.shape[:1] != (rows,):
                raise ReplyError(
                    f"{name} has {len(array) if array.ndim else 0} rows, expected {rows}"
                )
        weights = client_weights(plan, np.array(reply.num_examples, np.int64))
        # The norm of a weighted mean is at most the largest norm in it.
        scale = float(weights.sum()) if summed else 1.0
        for row in range(rows):
            fields = {k: v[row] for k, v in reply.fields.items()}
            count = sum(reply.num_examples) if summed else reply.num_examples[row]
            self._check_row(fields, shapes, count, scale)

    def _check_row(
        self,
        fields: Mapping[str, npt.NDArray[np.generic]],
        shapes: Mapping[str, tuple[int, ...]],
        num_examples: int,
        scale: float = 1.0,
    ) -> None:
        check_fields(fields, shapes, self._task.config.round.max_update_norm * scale * (1 + 1e-5))
        if "moments" in fields:
            check_counts(fields, num_examples)

    def _batch(self, plan: ClientPlan, reply: TrainReply) -> UpdateBatch:
        examples = np.array(reply.num_examples, np.int64)
        weights = client_weights(plan, examples)
        if self._reduce(plan) == "sum":
            return UpdateBatch(
                client_ids=(reply.clients,),
                num_examples=examples.sum(keepdims=True),
                weights=weights.sum(keepdims=True),
                fields=reply.fields,
            )
        ids = tuple((client,) for client in reply.clients)
        return UpdateBatch(ids, examples, weights, reply.fields)


def _no_answer(clients: list[int], result: RoundResult) -> None:
    result.failed += len(clients)
    result.reasons += [f"client {client}: no answer" for client in clients]
