"""Noise that partly cancels over rounds, for clients that take part at most every b-th round.

Every released sum has noise y. The head adds up all sums so far, and with them their noises. Here
the noises are y = C^-1 z for independent z: y_t takes back a part of y_(t-1), ..., y_(t-b+1). That
is as private as C x + z, of which x + y is made. C is the square root of the matrix of sums, cut
off after b diagonals: lower triangular, with c_0, ..., c_(b-1) down each column (Choquette-Choo et
al., arXiv 2306.08153; the coefficients: Fichtenberger, Henzinger, Upadhyay, arXiv 2202.11205).

A client's participations are at least b rounds apart, so no row of C holds two of them: their
columns are orthogonal whatever the client sends. No sampling needs to be trusted or hidden.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["coefficients", "correlated", "sensitivity"]

FloatArray = npt.NDArray[np.float64]


def coefficients(separation: int) -> tuple[float, ...]:
    """c_0 = 1, c_k = c_(k-1) (2k - 1) / (2k): of 1 / sqrt(1 - x), whose square adds everything up.

    Args:
        separation: b, how many; at least 1.

    >>> coefficients(4)
    (1.0, 0.5, 0.375, 0.3125)
    """
    c = [1.0]
    for k in range(1, separation):
        c.append(c[-1] * (2 * k - 1) / (2 * k))
    return tuple(c)


def correlated(noises: Iterable[FloatArray], c: Sequence[float]) -> FloatArray:
    """The noise of the last round: y_t = (z_t - c_1 y_(t-1) - ... - c_(b-1) y_(t-b+1)) / c_0.

    Args:
        noises: z_1, ..., z_t, at least one; float64 of one shape. They are used one by one.
        c: ``coefficients``; with one alone, y_t is z_t.

    Returns:
        y_t, float64 of that shape.

    Raises:
        ValueError: there is no noise.
    """
    before: deque[FloatArray] = deque(maxlen=len(c))
    for z in noises:
        taken_back = zip(c[1:], before, strict=False)
        y = (z - sum((c_j * y_j for c_j, y_j in taken_back), np.zeros_like(z))) / c[0]
        before.appendleft(y)
    if not before:
        raise ValueError("no noise, expected that of one round or more")
    return before[0]


def sensitivity(c: Sequence[float], rounds: int, again: int = 0) -> float:
    """How far one client moves C x, in clips: z needs a multiplier so many times larger.

    A client that takes part in rounds 1, b + 1, 2b + 1, ... moves it most. For b that divides the
    rounds it is sqrt(rounds / b) times the norm of c. A round that is done again with other sums is
    one row more, in which a client stands once, with c_0 at most.

    Args:
        c: ``coefficients``, which do not grow.
        rounds: how many.
        again: how many further attempts at rounds were released.

    >>> sensitivity(coefficients(1), 16)
    4.0
    """
    b = len(c)
    columns = (c[: rounds - first] for first in range(0, rounds, b))
    squared = math.fsum(c_k * c_k for column in columns for c_k in column)
    return math.sqrt(squared + again * c[0] ** 2)
