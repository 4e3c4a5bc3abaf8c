"""Common parts of all rounds: the run, the choice of clients, the quorum."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from flwr.serverapp import Grid

from common.config import Config
from common.seeding import Purpose, smallest
from common.types import Head
from server.record.checkpoint import Checkpoint
from server.record.events import event
from server.round.private import Guard
from server.round.registry import Registry
from server.round.result import RoundResult

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
    eligible = len(registry.known - frozenset(excluded))
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
