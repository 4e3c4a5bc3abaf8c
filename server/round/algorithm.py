"""Common parts of all rounds: the run, a round's figures, the choice of clients, the quorum."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from common.config import NO_PRIVACY, Config, PrivacyConfig
from common.messages import TrainReply
from common.seeding import Purpose, smallest
from common.types import Head
from common.words import one_line
from server.record.accounts import Accounts
from server.record.checkpoint import Checkpoint
from server.record.events import event
from server.record.untold import UNTOLD_REASON
from server.round.exchange import error_reason, has_declined
from server.round.private import Guard
from server.round.registry import Registry

__all__ = [
    "Algorithm",
    "Fault",
    "RoundResult",
    "Run",
    "are_there",
    "is_enough",
    "quorum",
    "sample_cohort",
    "tell_done",
    "tell_lost",
    "tell_no_quorum",
]


logger = logging.getLogger("fedhead")


@dataclass(frozen=True, eq=False)
class Run:
    """Objects that stay the same in all rounds; ``guard`` only in a private run."""

    config: Config
    run_id: str
    fingerprint: str
    grid: Grid
    registry: Registry
    guard: Guard | None = None

    @property
    def max_norm(self) -> float:
        """Fixed bound on the norm of an update; 0: none."""
        bound = self.config.round.max_update_norm
        return 0.0 if bound == "auto" else bound

    @property
    def bounds_by_median(self) -> bool:
        """Whether the median norm of a round bounds its updates, see server.round.norms.

        In a private run it never does: whether one client counted would depend on another's.
        """
        if self.guard:
            return False
        bound = self.config.round.max_update_norm
        return bound == "auto" or (not bound and self.registry.deployed)


@dataclass
class RoundResult:
    """Figures of one round's training; counts are of clients.

    Attributes:
        round_number: from 1.
        accounts: receives the same figures by client.
        privacy: the run's; what single clients do, and why, may then be left out of the log. The
            figures are all here; see server.record.untold for what is told of them.
        cohort: number of asked clients; each gave a valid update, a rejected one, or failed.
        wanted: number of valid updates that the round wanted.
        valid: number of updates that counted.
        rejected: number of updates that a node or the server refused.
        failed: clients without an answer: errors, missed deadlines, simulated absence.
        dropped: the part of ``failed`` that are simulated clients which never answered.
        late: answers after a round had closed: simulated clients' answers to this round, real
            clients' answers to earlier rounds.
        accepted: whether there is a new head.
        simulated_seconds: time that the round would have taken on phones; None: not simulated.
        train_seconds: real time from asking the clients to the new head.
        num_examples: number of examples behind the valid updates.
        uplink_bytes: payloads of the replies, as if each client sent its own.
        downlink_bytes: payloads of the requests, as if each client got its own, and of the
            projection with a client's first.
        loss_before: mean training loss of the global head, weighted by examples; None if the run is
            private, or no update was valid.
        loss_after: the same for the clients' own heads.
        metrics: the strategy's metrics of the round, by kebab-case name.
    """

    round_number: int
    accounts: Accounts
    privacy: PrivacyConfig = NO_PRIVACY
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
        """Record that an update is refused."""
        self.rejected += 1
        self.accounts.add("rejected", [client])
        self._tell("rejected", client, UNTOLD_REASON if self.privacy.active else reason)

    def fail(self, clients: Sequence[int], reason: str) -> None:
        """Record that clients give no update, with a log line for each."""
        self.miss(clients)
        for client in clients:
            self._tell("failed", client, reason)

    def fail_with(self, clients: Sequence[int], error: Message) -> None:
        """Record that the clients' node, or Flower in its place, answers with an error."""
        verb, kind = (" declines", "declined") if has_declined(error) else ("", "failed")
        reason = UNTOLD_REASON if self.privacy.active else error_reason(error)
        self.miss(clients)
        for client in clients:
            self._tell(kind, client, reason, verb)

    def miss(self, clients: Sequence[int]) -> None:
        """Record that clients give no update, without a log line."""
        self.failed += len(clients)
        self.accounts.add("failed", clients)

    def answered_late(self, clients: Sequence[int]) -> None:
        """Record that clients answered after their round had closed."""
        self.late += len(clients)
        self.accounts.add("late", clients)

    def send(self, clients: Sequence[int], size: int) -> None:
        """Record that each of some clients gets a request of this number of bytes."""
        self.downlink_bytes += self.accounts.send(clients, size)

    def count(self, replies: Sequence[TrainReply]) -> None:
        """Add up the reports of valid replies."""
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
        if self.privacy.active:  # clients tell neither
            return
        before = np.array([report.loss_before for report in reports])
        after = np.array([report.loss_after for report in reports])
        self.loss_before = float(before @ counts / counts.sum())
        self.loss_after = float(after @ counts / counts.sum())

    def _tell(self, kind: str, client: int, reason: str, verb: str = "") -> None:
        if self.privacy.hides_cohorts:  # nobody may know that it was asked
            return
        # Text from a device must not look like other lines of the log.
        number, name, reason = self.round_number, self.accounts.name(client), one_line(reason)
        event(
            kind, f"round {number}: {name}{verb}: {reason}",
            level=logging.WARNING, round=number, client=client, name=name, reason=reason,
        )  # fmt: skip


Fault = Callable[[Head], str]
"""Returns why a head must not be kept; empty: it may be kept."""


class Algorithm(Protocol):
    """Trains round by round, with one of fedhead's strategies or a stock one.

    Attributes:
        personal: lambda of the clients' own heads after the last round; 0: none; -1: each client
            chooses its own.
    """

    personal: float

    def start(self, head: Head, checkpoint: Checkpoint | None) -> None:
        """Make the state, or take it from a checkpoint."""
        ...

    def step(self, round_number: int, head: Head, fault: Fault) -> tuple[Head, RoundResult] | None:
        """The next head and the round's figures; None if no client is left to ask.

        If the new head has a fault, neither it nor its state is kept.
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

    Clients that still owe the answer to an earlier round are not asked.

    Args:
        run: grid, registry and configuration.
        round_number: from 1.
        excluded: clients that are not asked.
        everyone: whether all other clients are asked, whatever the configuration says.

    Returns:
        Ids, ascending, and the number of valid updates that the round wants; 0 if every client
        that ever joined is excluded.
    """
    config, registry = run.config, run.registry
    away = registry.stragglers.busy().union(excluded)
    ids = np.array(sorted(registry.clients.keys() - away), np.int64)
    if run.guard and (turn := run.guard.chosen(round_number, registry.known)) is not None:
        return sorted(turn.intersection(ids.tolist())), len(turn)
    eligible = len(registry.known.difference(excluded))
    size = 0 if everyone else min(config.train.asked(registry.population), eligible)
    wanted = size or min(eligible, max(1, len(ids)))
    if run.guard:  # a round costs the same, whoever is there: all clients count, absent ones too
        wanted = registry.population
    asked = math.ceil(wanted * (1 + (config.round.over_selection if size else 0)) - 1e-9)
    chosen: list[int] = smallest(ids, asked, config.seed, Purpose.COHORT, round_number).tolist()
    return chosen, wanted


def tell_done(round_number: int, why: str) -> None:
    """Log that a run ends before this round."""
    logger.info("%s: done after %d rounds", why, round_number - 1)


def tell_lost(round_number: int, why: str) -> None:
    """Log that a round leaves the head unchanged."""
    message = f"round {round_number}: {why}: head unchanged"
    event("unchanged", message, level=logging.WARNING, round=round_number, reason=why)


def tell_no_quorum(result: RoundResult, config: Config) -> None:
    """Log that too few updates are valid."""
    share = config.round.quorum
    why = f"{result.valid} of {result.wanted} updates are valid, the quorum is {share:g}"
    tell_lost(result.round_number, why)


def quorum(config: Config, wanted: int) -> int:
    """Number of updates that must be valid if this many are wanted."""
    return max(1, math.ceil(config.round.quorum * wanted - 1e-9))


def is_enough(config: Config, valid: int, wanted: int) -> bool:
    """Whether a round can end with a new head.

    With a hidden cohort always: that too few have answered would tell of whom it has asked.
    """
    return config.privacy.hides_cohorts or valid >= quorum(config, wanted)


def are_there(run: Run) -> bool:
    """Whether a round with a hidden cohort may toss its coins: its quorum of all clients is there.

    Other rounds know whether they can end once clients have answered.
    """
    registry, config = run.registry, run.config
    hides = config.privacy.hides_cohorts
    return not hides or len(registry.clients) >= quorum(config, registry.population)
