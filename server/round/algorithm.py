"""What carries a round out: the run, the round's figures, who is asked, what a reply must be."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from common.config import Config
from common.messages import TrainReply
from common.seeding import Purpose, smallest
from common.types import Head
from common.words import one_line
from server.record.accounts import Accounts
from server.record.checkpoint import Checkpoint
from server.record.events import event
from server.round.exchange import error_reason, has_declined
from server.round.registry import Registry

__all__ = [
    "Algorithm",
    "Fault",
    "RoundResult",
    "Run",
    "quorum",
    "sample_cohort",
    "tell_lost",
    "tell_no_quorum",
]


@dataclass(frozen=True, eq=False)
class Run:
    """What stays the same over all rounds."""

    config: Config
    run_id: str
    fingerprint: str
    grid: Grid
    registry: Registry

    @property
    def max_norm(self) -> float:
        """Bound on the norm of an update that is known beforehand; 0 for none."""
        bound = self.config.round.max_update_norm
        return 0.0 if bound == "auto" else bound

    @property
    def bounds_by_median(self) -> bool:
        """Whether the norms of a round's updates bound each other, see server.round.norms."""
        bound = self.config.round.max_update_norm
        return bound == "auto" or (not bound and self.registry.deployed)


@dataclass
class RoundResult:
    """Figures of one round's training; counts are of clients.

    Attributes:
        round_number: from 1.
        accounts: gets the same figures by client.
        cohort: how many were asked; each gave a valid update, a rejected one, or failed.
        wanted: how many valid updates the round was after.
        valid: how many updates counted.
        rejected: updates refused, by node or server.
        failed: clients without an answer: errors, missed deadlines, simulated absence.
        dropped: of those, simulated clients that never answered.
        late: answers to a round that had closed: simulated clients' to this one, and real ones'
            to earlier ones.
        accepted: whether the head is a new one.
        simulated_seconds: what the round would have taken on phones; None if not simulated.
        train_seconds: what it took here, from asking the clients to the new head.
        num_examples: behind the valid updates.
        uplink_bytes: payloads of the replies, as each client alone would send it.
        downlink_bytes: payloads of the requests, as each client alone would get it.
        loss_before: mean training loss of the global head, weighted by examples.
        loss_after: the same of the clients' own heads.
        metrics: what the strategy says of the round, by kebab-case name.
    """

    round_number: int
    accounts: Accounts
    cohort: int = 0
    wanted: int = 0
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
    metrics: Mapping[str, float] = field(default_factory=dict)

    def reject(self, client: int, reason: str) -> None:
        """An update is refused."""
        self.rejected += 1
        self.accounts.add("rejected", [client])
        self._tell("rejected", client, reason)

    def fail(self, clients: Sequence[int], reason: str) -> None:
        """Clients give no update, and the reason is worth a line for each."""
        self.miss(clients)
        for client in clients:
            self._tell("failed", client, reason)

    def fail_with(self, clients: Sequence[int], error: Message) -> None:
        """Their node answers with an error, or Flower does in its place."""
        verb, kind = (" declines", "declined") if has_declined(error) else ("", "failed")
        self.miss(clients)
        for client in clients:
            self._tell(kind, client, error_reason(error), verb)

    def miss(self, clients: Sequence[int]) -> None:
        """Clients give no update."""
        self.failed += len(clients)
        self.accounts.add("failed", clients)

    def answered_late(self, clients: Sequence[int]) -> None:
        """Clients answer when their round has closed."""
        self.late += len(clients)
        self.accounts.add("late", clients)

    def send(self, clients: Sequence[int], size: int) -> None:
        """Each of some clients gets so many bytes."""
        self.downlink_bytes += size * len(clients)
        self.accounts.add("downlink_bytes", clients, size)

    def count(self, replies: Sequence[TrainReply]) -> None:
        """Add up what valid replies report."""
        reports = [report for reply in replies for report in reply.reports]
        self.valid = len(reports)
        if not reports:
            return
        clients = [report.client for report in reports]
        counts = np.array([report.num_examples for report in reports], np.float64)
        sizes = [report.payload_bytes for report in reports]
        self.num_examples = int(counts.sum())
        self.uplink_bytes = sum(sizes)
        self.accounts.add("valid", clients)
        self.accounts.add("uplink_bytes", clients, sizes)
        before = np.array([report.loss_before for report in reports])
        after = np.array([report.loss_after for report in reports])
        self.loss_before = float(before @ counts / counts.sum())
        self.loss_after = float(after @ counts / counts.sum())

    def _tell(self, kind: str, client: int, reason: str, verb: str = "") -> None:
        # A device's own words must not look like other lines of the log.
        number, name, reason = self.round_number, self.accounts.name(client), one_line(reason)
        event(
            kind, f"round {number}: {name}{verb}: {reason}",
            level=logging.WARNING, round=number, client=client, name=name, reason=reason,
        )  # fmt: skip


Fault = Callable[[Head], str]
"""Says why a head must not be kept; empty: it is fine."""


class Algorithm(Protocol):
    """One round of training, by fedhead's own strategies or a stock one.

    Attributes:
        personal: lambda of the clients' own heads after the last round, 0 for none.
    """

    personal: float

    def start(self, head: Head, checkpoint: Checkpoint | None) -> None:
        """Make the state, or take it from a checkpoint."""
        ...

    def step(self, round_number: int, head: Head, fault: Fault) -> tuple[Head, RoundResult] | None:
        """The next head and the round's figures; None when there is nobody left to ask.

        A new head with a fault is not kept, nor is the state that goes with it.
        """
        ...

    @property
    def state(self) -> Any:
        """A dataclass that a checkpoint can hold."""
        ...


def sample_cohort(
    run: Run, round_number: int, *, excluded: Collection[int] = (), everyone: bool = False
) -> tuple[list[int], int]:
    """The clients of one round: those with the smallest draws.

    Who still owes the answer to an earlier round is not asked.

    Args:
        run: grid, registry and configuration.
        round_number: from 1.
        excluded: are not asked.
        everyone: all others are, whatever the configuration says.

    Returns:
        Ids, ascending, and how many valid updates the round wants; 0 when every client that has
        ever been there is excluded.
    """
    config, registry = run.config, run.registry
    eligible = len(registry.known.difference(excluded))
    size = 0 if everyone else min(config.train.asked(registry.population), eligible)
    away = registry.stragglers.busy().union(excluded)
    ids = np.array(sorted(registry.clients.keys() - away), np.int64)
    wanted = size or min(eligible, max(1, len(ids)))
    asked = math.ceil(wanted * (1 + (config.round.over_selection if size else 0)) - 1e-9)
    chosen: list[int] = smallest(ids, asked, config.seed, Purpose.COHORT, round_number).tolist()
    return chosen, wanted


def tell_lost(round_number: int, why: str) -> None:
    """Log that a round leaves the head as it was."""
    message = f"round {round_number}: {why}: head unchanged"
    event("unchanged", message, level=logging.WARNING, round=round_number, reason=why)


def tell_no_quorum(result: RoundResult, config: Config) -> None:
    """Log that too few updates are valid."""
    share = config.round.quorum
    why = f"{result.valid} of {result.wanted} updates are valid, the quorum is {share:g}"
    tell_lost(result.round_number, why)


def quorum(config: Config, wanted: int) -> int:
    """How many updates must be valid where so many are wanted."""
    return max(1, math.ceil(config.round.quorum * wanted - 1e-9))
