"""Which simulated phones answer in a round, and which answers come too late. All seeded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from common.config import AvailabilityConfig
from common.seeding import Purpose, uniform

__all__ = ["Availability", "simulate"]


@dataclass(frozen=True)
class Availability:
    """What becomes of a round's clients.

    Attributes:
        present: clients whose answers arrive in time, ascending.
        dropped: how many never answer.
        late: how many answer after the round has closed.
        seconds: simulated time until it closes.
    """

    present: tuple[int, ...]
    dropped: int
    late: int
    seconds: float


def simulate(
    cohort: Sequence[int],
    work: Mapping[int, int],
    config: AvailabilityConfig,
    *,
    seed: int,
    round_number: int,
) -> Availability:
    """Let clients drop out and straggle, and close the round.

    A round closes when ``close-fraction`` of the cohort has answered, or at the deadline, or
    when everybody who ever will has answered, whichever comes first.

    Args:
        cohort: ids of the clients that are asked, ascending.
        work: examples times epochs of each.
        config: rates, speeds and when to close.
        seed: of the run.
        round_number: decides who drops out; who is slow never changes.
    """
    ids = np.array(cohort, np.int64)
    luck = uniform(seed, Purpose.DROPOUT, round_number, index=ids)
    alive = luck >= config.dropout_rate
    slow = uniform(seed, Purpose.STRAGGLER, index=ids) < config.straggler_rate
    amount = np.array([work[client] for client in cohort], np.float64)
    seconds = amount * config.example_seconds * np.where(slow, config.straggler_factor, 1.0)
    arrivals = np.sort(seconds[alive])
    if not len(arrivals):
        return Availability((), len(ids), 0, config.deadline_seconds)
    enough = math.ceil(config.close_fraction * len(ids) - 1e-9)
    closes = float(arrivals[min(enough, len(arrivals)) - 1])
    if config.deadline_seconds and (closes > config.deadline_seconds or len(arrivals) < enough):
        # Who waits for answers that never come waits for the deadline.
        closes = config.deadline_seconds
    present = alive & (seconds <= closes)
    if int(present.sum()) > enough:  # a tie at the end: the draw that lets clients drop decides
        arrived = np.flatnonzero(present)
        last = np.lexsort((luck[arrived], seconds[arrived]))[enough:]
        present[arrived[last]] = False
    return Availability(
        present=tuple(ids[present].tolist()),
        dropped=int((~alive).sum()),
        late=int((alive & ~present).sum()),
        seconds=closes,
    )
