"""A bound on updates that the round itself sets: far larger than most others' is not fit to count.

No fixed number fits all data and learning rates, but the honest clients of a round move about as
far as each other, and no farther than in the run's first rounds: later most have little to add,
and those that still have must not be refused for it. More than half of the clients must be honest
for the median to be.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

__all__ = ["Norms", "no_norms", "oversized", "remembered", "row_norms"]

_FACTOR = 10.0  # honest clients of very unequal data (Dirichlet, alpha 0.1) stay below 6
_FEWEST = 3  # of which one that lies is not the median
_REMEMBERED = 32
# Every field of floats that a client sends, but FedNova's steps, which have a bound of their own.
_FIELDS = ("delta", "control_delta", "normalized_delta", "fair_delta", "fair_scale")

Norms = npt.NDArray[np.float64]


def no_norms() -> Norms:
    """What is known before the first round, float64 (0, 5)."""
    return np.zeros((0, len(_FIELDS)))


def row_norms(fields: Mapping[str, npt.NDArray[np.generic]]) -> Norms:
    """L2 norms of one client's own fields, float64 (5,); 0 for one that is not sent.

    q-FedAvg's scale grows with the square of a norm, so its root stands for it.
    """
    norms = np.zeros(len(_FIELDS))
    for i, name in enumerate(_FIELDS):
        if name in fields:
            norms[i] = np.linalg.norm(fields[name].astype(np.float64))
            if name == "fair_scale":
                norms[i] = np.sqrt(norms[i])
    return norms


def oversized(norms: Norms, earlier: Norms) -> dict[int, str]:
    """Which updates are far larger than the median of the round, and why each is refused.

    The run's first updates are a second yardstick, and the larger one holds; they also stand in
    where a round has fewer than three. Where even they are fewer, nobody can tell who lies.

    Args:
        norms: float64 (m, 5), of the round's updates.
        earlier: float64 (h, 5), see ``remembered``.
    """
    known = norms if len(norms) >= _FEWEST else np.concatenate([earlier, norms])
    if len(known) < _FEWEST:
        return {}
    middles = np.median(known, axis=0)
    if len(earlier) >= _FEWEST:
        middles = np.maximum(middles, np.median(earlier, axis=0))
    reasons: dict[int, str] = {}
    for i, middle in enumerate(middles):
        if not middle:  # not sent, or most clients have nothing to add
            continue
        for row in np.flatnonzero(norms[:, i] > _FACTOR * middle).tolist():
            what = "the root of " if _FIELDS[i] == "fair_scale" else "the norm of "
            reasons[row] = (
                f"{what}{_FIELDS[i]} is {norms[row, i]:.3g}, over {_FACTOR:g} times the median "
                f"of {middle:.3g}"
            )
    return reasons


def remembered(earlier: Norms, counted: Norms) -> Norms:
    """The norms of the first updates of a run that counted, float64 (h, 5), at most 32."""
    return np.concatenate([earlier, counted])[:_REMEMBERED]
