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

from common.fields import FIELDS

__all__ = ["Norms", "no_norms", "oversized", "remembered", "row_norms"]

_FACTOR = 10.0  # honest clients of very unequal data (Dirichlet, alpha 0.1) stay below 6
_FEWEST = 3  # of which one that lies is not the median
_REMEMBERED = 32

Norms = npt.NDArray[np.float64]


def _bounded() -> list[str]:
    """The fields of floats that have a bound here, in the order of their columns."""
    return [name for name, row in FIELDS.items() if row.of_training and row.is_bounded]


def no_norms() -> Norms:
    """What is known before the first round, float64 (0, f), f being the bounded fields."""
    return np.zeros((0, len(_bounded())))


def row_norms(fields: Mapping[str, npt.NDArray[np.generic]]) -> Norms:
    """L2 norms of one client's own fields, float64 (f,); 0 for one that is not sent.

    Of what grows with the square of a norm the root stands for it.
    """
    names = _bounded()
    norms = np.zeros(len(names))
    for i, name in enumerate(names):
        if name in fields:
            norms[i] = np.linalg.norm(fields[name].astype(np.float64))
            if FIELDS[name].is_squared:
                norms[i] = np.sqrt(norms[i])
    return norms


def oversized(norms: Norms, earlier: Norms) -> dict[int, str]:
    """Which updates are far larger than the median of the round, and why each is refused.

    The run's first updates are a second yardstick, and the larger one holds; they also stand in
    where a round has fewer than three. Where even they are fewer, nobody can tell who lies.

    Args:
        norms: float64 (m, f), of the round's updates.
        earlier: float64 (h, f), see ``remembered``.
    """
    known = norms if len(norms) >= _FEWEST else np.concatenate([earlier, norms])
    if len(known) < _FEWEST:
        return {}
    middles = np.median(known, axis=0)
    if len(earlier) >= _FEWEST:
        middles = np.maximum(middles, np.median(earlier, axis=0))
    reasons: dict[int, str] = {}
    for i, (name, middle) in enumerate(zip(_bounded(), middles, strict=True)):
        if not middle:  # not sent, or most clients have nothing to add
            continue
        for row in np.flatnonzero(norms[:, i] > _FACTOR * middle).tolist():
            what = "the root of " if FIELDS[name].is_squared else "the norm of "
            reasons[row] = (
                f"{what}{name} is {norms[row, i]:.3g}, over {_FACTOR:g} times the median "
                f"of {middle:.3g}"
            )
    return reasons


def remembered(earlier: Norms, counted: Norms) -> Norms:
    """The norms of the first updates of a run that counted, float64 (h, f), at most 32."""
    return np.concatenate([earlier, counted])[:_REMEMBERED]
