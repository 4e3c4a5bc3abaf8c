"""What the phones of a fleet count: calls, verdicts, and what came to each of them."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

__all__ = ["Tally"]

_PRINTED = 5
_SHOWN_CALLS = ("CheckIn", "Fetch", "Upload", "Submit")


@dataclass(eq=False)
class Tally:
    """Counted by all phones together, and by zone.

    Attributes:
        zone_of: each phone's zone.
        calls: answered calls by name.
        failed: calls that failed, by status.
        verdicts: answers to submissions: accepted, late, noted, or "refused: WHY".
        given: tasks that phones were given and that they meant to leave silent, late or declined.
        up_bytes: of messages to the gateway.
        down_bytes: of its answers.
        arrivals: moments of check-ins, in seconds since the beginning.
        waits: seconds that check-ins took.
        submits: seconds that submissions took.
        held: check-ins that are open now.
        most_held: the most that ever were at once.
        done_at: moments at which updates were accepted.
        tasks: tasks that each phone was given.
        check_ins: check-ins of each phone.
    """

    zone_of: list[int]
    calls: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)
    given: Counter[str] = field(default_factory=Counter)
    up_bytes: int = 0
    down_bytes: int = 0
    arrivals: array[float] = field(default_factory=lambda: array("d"))
    waits: array[float] = field(default_factory=lambda: array("d"))
    submits: array[float] = field(default_factory=lambda: array("d"))
    done_at: array[float] = field(default_factory=lambda: array("d"))
    held: int = 0
    most_held: int = 0

    def __post_init__(self) -> None:
        self.tasks, self.check_ins = ([0] * len(self.zone_of) for _ in range(2))

    def fail(self, status: str, words: str, now: float) -> None:
        """Count a call that failed, and print the first ones of each kind."""
        self.failed[status] += 1
        if self.failed[status] <= _PRINTED:
            print(f"{now:.1f} s: {status}: {words}", flush=True)

    def figures(self, seconds: float) -> dict[str, object]:
        """Everything as JSON.

        Args:
            seconds: since the beginning.
        """
        zones = []
        for zone in sorted(set(self.zone_of)):
            phones = [i for i, own in enumerate(self.zone_of) if own == zone]
            zones.append(
                {
                    "zone": zone,
                    "phones": len(phones),
                    "check_ins": sum(self.check_ins[i] for i in phones),
                    "tasks": sum(self.tasks[i] for i in phones),
                }
            )
        return {
            "seconds": seconds,
            "calls": {name: self.calls[name] for name in _SHOWN_CALLS},
            "failed": dict(self.failed),
            "verdicts": dict(self.verdicts),
            "given": dict(self.given),
            "up_bytes": self.up_bytes,
            "down_bytes": self.down_bytes,
            "arrivals_per_second": _per_second(self.arrivals, seconds),
            "accepted_per_second": _per_second(self.done_at, seconds),
            "check_in_seconds": _quantiles(self.waits),
            "submit_seconds": _quantiles(self.submits),
            "most_open_check_ins": self.most_held,
            "zones": zones,
        }


def _per_second(moments: array[float], seconds: float) -> list[int]:
    whole = max(1, int(seconds))
    counts: list[int] = np.histogram(np.frombuffer(moments), whole, (0, whole))[0].tolist()
    return counts


def _quantiles(values: array[float]) -> list[float]:
    """Median, 90th and 99th percentile."""
    if not values:
        return [0.0, 0.0, 0.0]
    return [float(q) for q in np.percentile(np.frombuffer(values, np.float64), (50, 90, 99))]
