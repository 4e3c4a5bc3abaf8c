"""How the clients' learning rate changes from round to round."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["Schedule", "ScheduleKind"]

ScheduleKind = Literal["constant", "linear", "cosine", "step"]


@dataclass(frozen=True)
class Schedule:
    """The share of the full learning rate that each round trains at.

    After the warm-up, the cosine is that of arXiv 1608.03983 without restarts.

    Attributes:
        kind: "constant"; "linear" and "cosine" fall towards 0, which the round after the last
            would have; "step" is multiplied by a factor every so many rounds.
        rounds: of the run.
        warmup_rounds: W, before the schedule begins: round r of them has r / (W + 1) of the rate.
        decay_rounds: after so many rounds a step falls.
        decay_factor: that it is multiplied by.
    """

    kind: ScheduleKind
    rounds: int
    warmup_rounds: int
    decay_rounds: int
    decay_factor: float

    @property
    def depends_on_rounds(self) -> bool:
        """Whether a longer run has other rates in the same rounds."""
        return self.kind in ("linear", "cosine")

    def share(self, round_number: int) -> float:
        """Of the full rate, in (0, 1].

        Args:
            round_number: from 1 to the run's rounds.

        >>> [Schedule("linear", 4, 0, 10, 0.5).share(r) for r in (1, 2, 3, 4)]
        [1.0, 0.75, 0.5, 0.25]
        >>> [Schedule("step", 9, 1, 2, 0.1).share(r) for r in (1, 2, 3, 4)]
        [0.5, 1.0, 1.0, 0.1]
        """
        if round_number <= self.warmup_rounds:
            return round_number / (self.warmup_rounds + 1)
        done = round_number - 1 - self.warmup_rounds
        if self.kind == "step":
            return float(self.decay_factor ** (done // self.decay_rounds))
        if self.kind == "constant":
            return 1.0
        progress = done / (self.rounds - self.warmup_rounds)
        if self.kind == "linear":
            return 1.0 - progress
        return (1.0 + math.cos(math.pi * progress)) / 2
