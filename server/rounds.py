"""The round loop, the only one: plan, exchange, validate, aggregate, evaluate, checkpoint."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from common.config import Config
from common.errors import FedheadError, ReplyError
from common.evaluation import Evaluation, evaluate
from common.messages import TrainReply, TrainRequest, payload_bytes
from common.seeding import Purpose, draws
from common.types import ClientPlan, FeatureSet, Head, UpdateBatch
from common.updates import client_weights
from common.validate import check_counts, check_fields, field_shapes
from server.checkpoint import Checkpoint, restore_state, save_checkpoint
from server.exchange import Registry, error_reason, exchange
from server.runfolder import MetricsLog, RunFolder
from server.strategy import Strategy

__all__ = ["Engine", "RoundResult", "StrategyEngine", "Task", "run_rounds", "sample_cohort"]

logger = logging.getLogger("fedhead")


@dataclass(frozen=True, eq=False)
class Task:
    """What stays the same over all rounds."""

    config: Config
    run_id: str
    fingerprint: str
    grid: Grid
    registry: Registry


@dataclass
class RoundResult:
    """Figures of one round's training; counts are of clients.

    Attributes:
        cohort: how many were asked.
        valid: how many updates counted.
        rejected: updates refused, by node or server.
        failed: clients without an answer: errors and missed deadlines.
        num_examples: behind the valid updates.
        uplink_bytes: payloads of the replies, as each client alone would send it.
        downlink_bytes: payloads of the requests, as each client alone would get it.
        loss_before: mean training loss of the global head, weighted by examples.
        loss_after: the same of the clients' own heads.
    """

    cohort: int = 0
    valid: int = 0
    rejected: int = 0
    failed: int = 0
    num_examples: int = 0
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    loss_before: float | None = None
    loss_after: float | None = None
    reasons: list[str] = field(default_factory=list)

    def reject(self, client: int, reason: str) -> None:
        self.rejected += 1
        self.reasons.append(f"client {client}: {reason}")

    def count(self, replies: list[TrainReply]) -> None:
        """Add up what valid replies report."""
        counts = np.array([n for r in replies for n in r.num_examples], np.float64)
        if not counts.size:
            return
        self.valid, self.num_examples = len(counts), int(counts.sum())
        self.uplink_bytes = sum(b for r in replies for b in r.payload_bytes)
        before = np.array([v for r in replies for v in r.loss_before])
        after = np.array([v for r in replies for v in r.loss_after])
        self.loss_before = float(before @ counts / counts.sum())
        self.loss_after = float(after @ counts / counts.sum())


class Engine(Protocol):
    """One round of training, by fedhead's own strategies or a stock one."""

    def start(self, head: Head, checkpoint: Checkpoint | None) -> None:
        """Make the state, or take it from a checkpoint."""
        ...

    def step(self, round_number: int, head: Head) -> tuple[Head, RoundResult] | None:
        """The next head and the round's figures; None when there is nobody left to ask."""
        ...

    @property
    def state(self) -> Any:
        """A dataclass that a checkpoint can hold."""
        ...


def sample_cohort(clients: list[int], size: int, seed: int, round_number: int) -> list[int]:
    """The clients of one round, ascending: those with the smallest draws.

    A client's draw depends on its own id alone, so one that is away changes nobody else's luck.
    """
    ids = np.array(sorted(clients), np.int64)
    if size == 0 or size >= len(ids):
        return [int(i) for i in ids]
    order = np.argsort(draws(seed, Purpose.COHORT, round_number, index=ids), kind="stable")
    return [int(i) for i in np.sort(ids[order[:size]])]


def check_reply(reply: TrainReply, task: Task, asked: set[int], fingerprint: str) -> None:
    """What must hold of any reply before its arrays are looked at.

    Raises:
        ReplyError: a foreign fingerprint, a client that was not asked or is named twice, or
            another number of examples than the client described.
    """
    if reply.fingerprint != fingerprint:
        raise ReplyError(
            f"features are of backbone {reply.fingerprint[:12]}, expected {fingerprint[:12]}"
        )
    if repeated := [c for c, n in Counter(reply.clients).items() if n > 1]:
        raise ReplyError(f"names client {repeated[0]} twice")
    if strangers := {*reply.clients, *reply.rejected_clients} - asked:
        raise ReplyError(f"speaks for client {min(strangers)}, which it was not asked for")
    for client, count in zip(reply.clients, reply.num_examples, strict=True):
        known = task.registry.clients[client].num_examples
        if count != known:
            raise ReplyError(f"client {client} reports {count} examples, described {known}")
    if not np.isfinite([*reply.loss_before, *reply.loss_after]).all():
        raise ReplyError("a loss is not finite")


class StrategyEngine:
    """Runs a Strategy: nodes train their clients and send sums or single updates."""

    def __init__(self, task: Task, strategy: Strategy[Any]) -> None:
        self._task, self._strategy = task, strategy
        self.state: Any = None

    def start(self, head: Head, checkpoint: Checkpoint | None) -> None:
        self.state = self._strategy.init(head)
        if checkpoint is not None:
            self.state = restore_state(self.state, checkpoint)

    def step(self, round_number: int, head: Head) -> tuple[Head, RoundResult] | None:
        config, task = self._task.config, self._task
        plan = self._strategy.plan(self.state, round_number)
        cohort = sample_cohort(
            [c for c in task.registry.clients if c not in set(plan.exclude)],
            config.train.clients_per_round,
            config.seed,
            round_number,
        )
        if not cohort:
            return None
        result = RoundResult(cohort=len(cohort))
        replies = self._exchange(round_number, head, plan, cohort, result)
        replies.sort(key=lambda reply: min(reply.clients))
        result.count(replies)
        if result.valid >= max(1.0, config.round.quorum * len(cohort)):
            head = self._aggregate(round_number, head, self._batch(plan, replies))
        else:
            logger.warning(
                "round %d: %d of %d updates are valid, the quorum is %g: head unchanged",
                round_number, result.valid, len(cohort), config.round.quorum,
            )  # fmt: skip
        return head, result

    def _aggregate(self, round_number: int, head: Head, updates: UpdateBatch) -> Head:
        """The next head; the old one, and the old state, where aggregation gives no numbers."""
        try:
            state, new = self._strategy.aggregate(self.state, head, updates)
        except np.linalg.LinAlgError as exc:
            logger.warning("round %d: aggregation failed (%s): head unchanged", round_number, exc)
            return head
        if not np.isfinite(new.matrix).all():
            logger.warning("round %d: the new head is not finite: head unchanged", round_number)
            return head
        self.state = state
        return new

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
            reduce=self._strategy.reduce,
            max_norm=config.round.max_update_norm,
        )

    def _exchange(
        self,
        round_number: int,
        head: Head,
        plan: ClientPlan,
        cohort: list[int],
        result: RoundResult,
    ) -> list[TrainReply]:
        """Valid replies only; the others are counted and named."""
        task = self._task
        by_node: dict[int, list[int]] = {}
        for client in cohort:
            by_node.setdefault(task.registry.clients[client].node, []).append(client)
        alone = self._request(round_number, head, plan, cohort[:1])
        result.downlink_bytes = payload_bytes(alone.write()) * len(cohort)

        valid: list[TrainReply] = []
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
            deadline = task.config.round.deadline_seconds
            for node, message in exchange(task.grid, messages, deadline):
                clients = by_node.pop(node)
                reply = self._read(message, clients, plan, head, result)
                if reply is None:
                    continue
                if reply.missing_backbone and attempt == 0:
                    lacking[node] = clients
                    continue
                if reply.clients:
                    valid.append(reply)
                for client in set(clients) - {*reply.clients, *reply.rejected_clients}:
                    result.failed += 1
                    result.reasons.append(f"client {client}: not in its node's answer")
            if not lacking:
                break
            task.registry.deliver_backbone(sorted(lacking))
            by_node |= lacking
        for clients in by_node.values():
            result.failed += len(clients)
            result.reasons += [f"client {client}: no answer" for client in clients]
        return valid

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
        summed = self._strategy.reduce == "sum"
        rows = 1 if summed else len(reply.clients)
        for name, array in reply.fields.items():
            if array.shape[:1] != (rows,):
                raise ReplyError(
                    f"{name} has {len(array) if array.ndim else 0} rows, expected {rows}"
                )
        weights = client_weights(plan, np.array(reply.num_examples, np.int64))
        for row in range(rows):
            # The norm of a weighted mean is at most the largest norm in it.
            scale = float(weights.sum()) if summed else 1.0
            bound = self._task.config.round.max_update_norm * scale * (1 + 1e-5)
            fields = {k: v[row] for k, v in reply.fields.items()}
            check_fields(fields, shapes, bound)
            if "gram" in fields:
                check_counts(fields, sum(reply.num_examples) if summed else reply.num_examples[row])

    def _batch(self, plan: ClientPlan, replies: list[TrainReply]) -> UpdateBatch:
        summed = self._strategy.reduce == "sum"
        ids: list[tuple[int, ...]] = []
        counts: list[int] = []
        weights: list[float] = []
        for reply in replies:
            examples = np.array(reply.num_examples, np.int64)
            weight = client_weights(plan, examples)
            ids += [reply.clients] if summed else [(client,) for client in reply.clients]
            counts += [int(examples.sum())] if summed else list(examples)
            weights += [float(weight.sum())] if summed else list(weight)
        return UpdateBatch(
            client_ids=tuple(ids),
            num_examples=np.array(counts, np.int64),
            weights=np.array(weights, np.float64),
            fields={
                name: np.concatenate([reply.fields[name] for reply in replies])
                for name in plan.fields
            },
        )


def _metrics(result: RoundResult, evaluation: Evaluation, seconds: float) -> dict[str, Any]:
    return {
        "accuracy": evaluation.accuracy,
        "loss": evaluation.loss,
        "class-accuracy": evaluation.class_accuracy,
        "confusion": evaluation.confusion.tolist(),
        "train-loss-before": result.loss_before,
        "train-loss-after": result.loss_after,
        "cohort": result.cohort,
        "valid": result.valid,
        "rejected": result.rejected,
        "failed": result.failed,
        "num-examples": result.num_examples,
        "uplink-bytes": result.uplink_bytes,
        "downlink-bytes": result.downlink_bytes,
        "seconds": round(seconds, 4),
    }


_COUNTED = ("valid", "rejected", "failed", "uplink-bytes", "downlink-bytes", "seconds")


def run_rounds(
    task: Task,
    engine: Engine,
    head: Head,
    test: FeatureSet,
    folder: RunFolder,
    checkpoint: Checkpoint | None,
) -> tuple[Head, int, Mapping[str, float]]:
    """Run from the round after the checkpoint, or from the first, to the last.

    Args:
        task: grid, registry and configuration.
        engine: trains.
        head: the first head; a checkpoint's takes its place.
        test: the server's test set.
        folder: gets metrics and checkpoints.
        checkpoint: where to go on from.

    Returns:
        The last head, the number of finished rounds, and the totals of the run.
    """
    config = task.config
    done = checkpoint.round_number if checkpoint else 0
    head = checkpoint.head if checkpoint else head
    counters = dict.fromkeys(_COUNTED, 0.0) | dict(checkpoint.counters if checkpoint else {})
    engine.start(head, checkpoint)
    with MetricsLog(folder.path, done) as log:
        for round_number in range(done + 1, config.train.rounds + 1):
            started = time.perf_counter()
            task.registry.refresh()
            step = engine.step(round_number, head)
            if step is None:
                logger.info("every client has been asked: done after %d rounds", done)
                break
            head, result = step
            evaluation = evaluate(head, test)
            metrics = _metrics(result, evaluation, time.perf_counter() - started)
            for name in _COUNTED:
                counters[name] += metrics[name]
            log.write(round_number, metrics)
            save_checkpoint(
                folder.checkpoints,
                round_number=round_number,
                head=head,
                state=engine.state,
                counters=counters,
                keep=config.round.keep_checkpoints,
            )
            done = round_number
            _report(round_number, config.train.rounds, result, evaluation)
    return head, done, counters


def _report(number: int, rounds: int, result: RoundResult, evaluation: Evaluation) -> None:
    for reason in result.reasons:
        logger.warning("round %d: %s", number, reason)
    loss = "-" if result.loss_before is None else f"{result.loss_before:.3f}"
    logger.info(
        "round %*d/%d  accuracy %.4f  loss %.4f  train loss %s  clients %d/%d  up %.2f MB",
        len(str(rounds)), number, rounds, evaluation.accuracy, evaluation.loss, loss,
        result.valid, result.cohort, result.uplink_bytes / 1e6,
    )  # fmt: skip
