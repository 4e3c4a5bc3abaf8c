"""What a private run leaves out of all that it writes: what clients say of themselves, un-noised.

A run with differential privacy releases sums of clients' updates with noise, and what follows from
these. A count of examples or a mean loss beside them would be a release without noise. With secret
cohorts neither may be told who was asked in a round, nor how many that were, nor what follows from
it, such as bytes: the guarantee rests on nobody's knowing.
"""

from __future__ import annotations

from common.config import PrivacyConfig

__all__ = ["UNTOLD_REASON", "untold_figures"]

UNTOLD_REASON = "the run is private, so why is not told"
"""In place of what a client, or a check of its update, says of a problem."""

_OF_EXAMPLES = ("train-loss-before", "train-loss-after", "num-examples")
_OF_COHORTS = (
    "cohort", "valid", "rejected", "failed", "dropped", "late", "simulated-seconds",
    "uplink-bytes", "downlink-bytes",
)  # fmt: skip


def untold_figures(privacy: PrivacyConfig) -> frozenset[str]:
    """Which figures of a round are not told, by their keys in metrics.jsonl."""
    if not privacy.active:
        return frozenset()
    return frozenset((*_OF_EXAMPLES, *(_OF_COHORTS if privacy.hides_cohorts else ())))
