"""A client's update as whole numbers whose exact norm is bounded, so that sums have no roundings.

A sum of floats depends on its order, and the rounding of a large sum can tell more about one
client than its clipped update would (Mironov, "On significance of the least significant bits for
differential privacy", CCS 2012; for sums: Casacuberta et al., arXiv 2207.10635). Here the clip
becomes the integer ``RESOLUTION``: whatever one client holds, adding or removing it changes the
exact sum by a vector of norm at most ``RESOLUTION``.

Every implementation must give the same numbers, in any language and any order of summation::

    p = max |x_i|,  u_i = x_i / p                          float64
    S = sum of ceil(|u_i| 2^20)^2                          int64, exact
    U = sqrt(S) 2^-20                                      float64, at least the norm of u
    f = RESOLUTION / U         if p / clip * U > 1         float64, from left to right
        p / clip * RESOLUTION  otherwise
    q_i = u_i f, truncated toward zero                     int64

Why the bound is exact: U is rounded up, so the exact norm of u f is at most RESOLUTION up to the
roundings of five float64 operations, a relative 2^-50 in the norm. Truncation only shrinks. The
squared norm of q is thus an integer at most 2^36 (1 + 2^-49), below 2^36 + 1, and so at most 2^36.
Rounding to the nearest integer would exceed it. For a norm just below the clip, U may be a little
above it: such an update is shrunk by up to 2^-20 sqrt(size), which costs no privacy.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from common.errors import ReplyError

__all__ = [
    "FINE",
    "MAX_CLIENTS",
    "MAX_SIZE",
    "OFFSET",
    "RESOLUTION",
    "check_clipped",
    "clipped",
    "is_within",
    "offset_sum",
    "squared_norm",
    "with_offset",
]

RESOLUTION = 2**18
"""What the clip becomes as an integer."""

OFFSET = RESOLUTION
"""What is added before sending, so that messages and sums hold unsigned integers."""

MAX_SIZE = 2**23 - 1
"""Coordinates of an update: with more, a sum of squares might not fit 64 bits."""

MAX_CLIENTS = 2**20
"""Clients in one sum, for the same reason."""

FINE = 2**20
"""Steps in which a norm is measured."""

_LOW_BITS = 20

Integers = npt.NDArray[np.int64]


def clipped(delta: npt.NDArray[np.floating], clip: float) -> Integers:
    """An update, shrunk to a norm of at most ``clip``, in units of ``clip / RESOLUTION``.

    Args:
        delta: float array of any shape.
        clip: the largest norm, above 0.

    Returns:
        int64 of the same shape. Its exact norm is at most ``RESOLUTION``.

    Raises:
        ReplyError: a number is not finite, or there are more than ``MAX_SIZE``.
        ValueError: the clip is not a finite number above 0.

    >>> clipped(np.array([0.25, -0.5]), 1.0).tolist()
    [65536, -131072]
    >>> clipped(np.array([3.0, -4.0]), 1.0).tolist()
    [157286, -209715]
    """
    peak, unit, norm = _measured(delta, clip)
    factor = RESOLUTION / norm if peak / clip * norm > 1 else peak / clip * RESOLUTION
    return np.trunc(unit * factor).astype(np.int64)


def is_within(delta: npt.NDArray[np.floating], clip: float) -> bool:
    """Whether an update's norm is at most the clip, as ``clipped`` measures it.

    Raises:
        ReplyError, ValueError: as ``clipped``.
    """
    peak, _, norm = _measured(delta, clip)
    return peak / clip * norm <= 1


def _measured(
    delta: npt.NDArray[np.floating], clip: float
) -> tuple[float, npt.NDArray[np.float64], float]:
    """The largest magnitude p, x / p, and a number just above the norm of x / p."""
    if not (clip > 0 and math.isfinite(clip)):
        raise ValueError(f"clip is {clip}, expected a finite number above 0")
    if delta.size > MAX_SIZE:
        raise ReplyError(f"delta has {delta.size} numbers, expected at most {MAX_SIZE}")
    x = delta.astype(np.float64)
    peak = float(np.abs(x).max(initial=0.0))
    if not math.isfinite(peak):
        raise ReplyError("delta is not finite")
    if peak == 0:
        return 0.0, x, 0.0
    unit = x / peak
    steps = np.ceil(np.abs(unit) * FINE).astype(np.int64)
    return peak, unit, math.sqrt(int((steps * steps).sum())) / FINE


def with_offset(values: Integers) -> npt.NDArray[np.uint32]:
    """What is sent: the integers of ``clipped`` plus ``OFFSET``, uint32 of the same shape."""
    return (values + OFFSET).astype(np.uint32)


def offset_sum(total: npt.NDArray[np.unsignedinteger], clients: int) -> Integers:
    """The sum of clients' integers, from the sum of what they sent.

    Args:
        total: uint32 or uint64 of any shape, the exact sum of ``with_offset`` arrays.
        clients: how many were added, at most ``MAX_CLIENTS``.
    """
    return total.astype(np.int64) - OFFSET * clients


def check_clipped(sent: npt.NDArray[np.unsignedinteger], clients: int = 1) -> None:
    """Refuse what no honest client sends: a number out of range, or too large a norm.

    Args:
        sent: what a client sent, or the exact sum of what several have sent.
        clients: how many were added, at most ``MAX_CLIENTS``.

    Raises:
        ReplyError: the array cannot be such a sum.
    """
    if not 1 <= clients <= MAX_CLIENTS or sent.size > MAX_SIZE:
        raise ReplyError(
            f"clipped_delta has {sent.size} numbers from {clients} clients, "
            f"expected at most {MAX_SIZE} from 1 to {MAX_CLIENTS}"
        )
    most = 2 * OFFSET * clients
    top = int(sent.max(initial=0))
    if top > most:
        raise ReplyError(f"clipped_delta has {top}, expected at most {most}")
    squared = squared_norm(offset_sum(sent, clients))
    if squared > (RESOLUTION * clients) ** 2:
        norm = math.sqrt(squared) / RESOLUTION
        raise ReplyError(f"clipped_delta is {norm:.9g} clips long, which is more than {clients}")


def squared_norm(values: Integers) -> int:
    """The exact sum of squares of up to ``MAX_SIZE`` integers, each within +-2^40.

    >>> squared_norm(np.array([-(2**38), 1]))
    75557863725914323419137
    """
    high, low = values >> _LOW_BITS, values & (2**_LOW_BITS - 1)
    squares = ((high * high).sum(), (high * low).sum(), (low * low).sum())
    first, mixed, last = (int(part) for part in squares)
    return (first << 2 * _LOW_BITS) + (mixed << _LOW_BITS + 1) + last
