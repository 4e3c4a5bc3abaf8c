"""What carries a round out: the task, the round's figures, who is asked, what a reply must be."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from flwr.serverapp import Grid

from common.config import Config
from common.errors import ReplyError
from common.messages import TrainReply
from common.seeding import Purpose, smallest
from common.types import Head
from server.checkpoint import Checkpoint
from server.exchange import Registry

__all__ = ["Engine", "RoundResult", "Task", "check_reply", "sample_cohort"]


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
        failed: clients without an answer: errors, missed deadlines, simulated absence.
        dropped: of those, simulated clients that never answered.
        late: of those, simulated clients that answered after the round had closed.
        accepted: whether the head is a new one.
        simulated_seconds: what the round would have taken on phones; None if not simulated.
        train_seconds: what it took here, from the plan to the new head.
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
    dropped: int = 0
    late: int = 0
    accepted: bool = False
    simulated_seconds: float | None = None
    train_seconds: float = 0.0
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
    """One round of training, by fedhead's own strategies or a stock one.

    Attributes:
        personal: lambda of the clients' own heads after the last round, 0 for none.
    """

    personal: float

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
    """The clients of one round, ascending: those with the smallest draws, or all for size 0."""
    ids = np.array(sorted(clients), np.int64)
    chosen: list[int] = smallest(ids, size or len(ids), seed, Purpose.COHORT, round_number).tolist()
    return chosen


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
    if both := set(reply.clients) & set(reply.rejected_clients):
        raise ReplyError(f"client {min(both)} is in the update and refused")
    if strangers := {*reply.clients, *reply.rejected_clients} - asked:
        raise ReplyError(f"speaks for client {min(strangers)}, which it was not asked for")
    for client, count in zip(reply.clients, reply.num_examples, strict=True):
        known = task.registry.clients[client].num_examples
        if count != known:
            raise ReplyError(f"client {client} reports {count} examples, described {known}")
    if not np.isfinite([*reply.loss_before, *reply.loss_after]).all():
        raise ReplyError("a loss is not finite")
