"""Which simulated clients answer in a round, and which answer too late. All draws are seeded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from common.config import AvailabilityConfig
from common.seeding import Purpose, uniform
from common.types import ClientPlan
from server.round.algorithm import RoundResult, Run, is_enough

__all__ = ["Availability", "answering", "simulate"]


def answering(run: Run, plan: ClientPlan, cohort: list[int], result: RoundResult) -> list[int]:
    """The clients that the round waits for, ascending; the others are counted as missing.

    These are all of the cohort, except those that simulated availability keeps away. If too few
    are left for the round, it is nobody, because then no training is needed.

    Args:
        run: registry and configuration.
        plan: the round's plan.
        cohort: ids of the asked clients, ascending.
        result: receives the counts.
    """
    present = _present(run, plan, cohort, result)
    if is_enough(run.config, len(present), result.wanted):
        return present
    result.miss(present, "spared")
    return []


def _present(run: Run, plan: ClientPlan, cohort: list[int], result: RoundResult) -> list[int]:
    """The clients that simulated availability leaves in the round."""
    config, registry = run.config, run.registry
    always = config.availability == AvailabilityConfig() and len(cohort) <= result.wanted
    if always or not registry.simulated:
        return cohort
    epochs = config.train.local_epochs if plan.kind == "sgd" else 1
    # A private run's clients do not tell how many examples they have: each has the typical number.
    typical = run.guard.decided.examples if run.guard else None
    outcome = simulate(
        cohort,
        {i: (typical or registry.clients[i].num_examples) * epochs for i in cohort},
        config.availability,
        wanted=result.wanted,
        seed=config.seed,
        round_number=result.round_number,
    )
    result.dropped = len(outcome.dropped)
    result.miss(outcome.dropped, "silent")
    result.miss(outcome.late, "late")
    result.answered_late(outcome.late)
    result.simulated_seconds = outcome.seconds
    return list(outcome.present)


@dataclass(frozen=True)
class Availability:
    """The availability of a round's clients.

    Attributes:
        present: clients whose answers arrive in time, ascending.
        dropped: clients that never answer.
        late: clients that answer after the round has closed.
        seconds: simulated time until the round closes.
    """

    present: tuple[int, ...]
    dropped: tuple[int, ...]
    late: tuple[int, ...]
    seconds: float


def simulate(
    cohort: Sequence[int],
    work: Mapping[int, float],
    config: AvailabilityConfig,
    *,
    wanted: int,
    seed: int,
    round_number: int,
) -> Availability:
    """Let clients drop out and straggle, and close the round.

    A round closes as soon as one of these holds: as many clients as it wants have answered;
    ``close-fraction`` of the cohort have answered; all that will ever answer have answered; the
    deadline is over.

    Args:
        cohort: ids of the clients that are asked, ascending.
        work: examples times epochs of each client.
        config: rates, speeds and closing conditions.
        wanted: number of answers that are enough, at least 1.
        seed: the run's seed.
        round_number: the round; clients drop out by round, but the slow ones are always the same.
    """
    ids = np.array(cohort, np.int64)
    luck = uniform(seed, Purpose.DROPOUT, round_number, index=ids)
    alive = luck >= config.dropout_rate
    slow = uniform(seed, Purpose.STRAGGLER, index=ids) < config.straggler_rate
    amount = np.array([work[client] for client in cohort], np.float64)
    seconds = amount * config.example_seconds * np.where(slow, config.straggler_factor, 1.0)
    arrivals = np.sort(seconds[alive])
    if not len(arrivals):
        return Availability((), tuple(ids.tolist()), (), config.deadline_seconds)
    enough = min(wanted, math.ceil(config.close_fraction * len(ids) - 1e-9))
    closes = float(arrivals[min(enough, len(arrivals)) - 1])
    if config.deadline_seconds and (closes > config.deadline_seconds or len(arrivals) < enough):
        # If some answers never come, the round lasts until the deadline.
        closes = config.deadline_seconds
    present = alive & (seconds <= closes)
    if int(present.sum()) > enough:  # a tie for the last place: the dropout draws decide
        arrived = np.flatnonzero(present)
        last = np.lexsort((luck[arrived], seconds[arrived]))[enough:]
        present[arrived[last]] = False
    return Availability(
        present=tuple(ids[present].tolist()),
        dropped=tuple(ids[~alive].tolist()),
        late=tuple(ids[alive & ~present].tolist()),
        seconds=closes,
    )
