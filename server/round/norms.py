"""A bound from the round's own updates: one that is far larger than most others is refused.

No fixed bound fits all data and learning rates. But a round's honest clients have norms of similar
size, and not larger than in the run's first rounds. Later, most clients change little, and those
that still change more must not be refused; so the first rounds' norms count too. The median is
reliable only if more than half of the clients are honest.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from common.fields import FIELDS

__all__ = ["Norms", "no_norms", "oversized", "remembered", "row_norms"]

_FACTOR = 10.0  # honest clients with very unequal data (Dirichlet, alpha 0.1) stay below 6
_FEWEST = 3  # of three updates, a single false one cannot be the median
_REMEMBERED = 32

Norms = npt.NDArray[np.float64]


def _bounded() -> list[str]:
    """Names of the fields with a bound, in the order of their columns."""
    return [name for name, row in FIELDS.items() if row.of_training and row.is_bounded]


def no_norms() -> Norms:
    """No norms, as before the first round: float64 (0, f), with f bounded fields."""
    return np.zeros((0, len(_bounded())))


def row_norms(fields: Mapping[str, npt.NDArray[np.generic]]) -> Norms:
    """L2 norms of one client's fields, float64 (f,); 0 for a field that is not sent.

    For a field that grows with the square of a norm, its root is taken.
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
    """Updates that are far larger than the round's median, with the reason for refusing each.

    The median of the run's first updates is a second measure, and the larger one counts. It is the
    only one if a round has fewer than three updates. If there are fewer than three first updates
    as well, nothing is refused.

    Args:
        norms: float64 (m, f), norms of the round's updates.
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
    """The norms of a run's first updates that counted, float64 (h, f), at most 32."""
    return np.concatenate([earlier, counted])[:_REMEMBERED]
