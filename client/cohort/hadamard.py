"""Rotations y = H S x of rows that lie side by side, compiled: the bits of ``rotation``.

Number j of row i is x[j * LANES + i], so that one instruction does the same to several rows. Three
steps of the numpy version are done between one load and one store of each number. An output of
them is the same tree of additions as before, only its parts never leave the registers.

A change here alone does not renew what is stored of ``client.cohort.codecs``: numba looks only at
the file of a function, not of those that it calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

import client.cohort.kernels  # noqa: F401 - it says where compiled code is stored

__all__ = ["LANES", "WORD", "rotate"]

F = TypeVar("F", bound=Callable[..., Any])

LANES = 16  # rows side by side: two vector instructions in the shortest loops
WORD = 32  # bits of signs at a time
_TOP = np.uint32(1 << 31)


def _compiled(function: F) -> F:
    return cast("F", numba.njit(nogil=True, cache=True)(function))


def _inlined(function: F) -> F:
    return cast("F", numba.njit(nogil=True, inline="always")(function))


@_inlined
def _eight(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any) -> Any:
    """Three steps of the numpy version: the same additions, but in registers."""
    a, b, c, d, e, f, g, h = a + b, a - b, c + d, c - d, e + f, e - f, g + h, g - h
    a, b, c, d, e, f, g, h = a + c, b + d, a - c, b - d, e + g, f + h, e - g, f - h
    return a + e, b + f, c + g, d + h, a - e, b - f, c - g, d - h


# The compiler makes vector instructions of such loops only if it knows ``by``.
@_inlined
def _three_steps(x: Any, by: Any) -> None:
    """Butterflies over the distances by, 2 by and 4 by in x (8 by,)."""
    for j in range(by):
        (
            x[j], x[j + by], x[j + 2 * by], x[j + 3 * by],
            x[j + 4 * by], x[j + 5 * by], x[j + 6 * by], x[j + 7 * by],
        ) = _eight(
            x[j], x[j + by], x[j + 2 * by], x[j + 3 * by],
            x[j + 4 * by], x[j + 5 * by], x[j + 6 * by], x[j + 7 * by],
        )  # fmt: skip


@_inlined
def _signed(number: Any, word: Any) -> Any:
    """The number with another sign if the word's top bit is set."""
    bits = np.float32(number).view(np.uint32)
    return np.uint32(bits ^ np.uint32(np.uint32(word) & _TOP)).view(np.float32)


@_compiled
def _first_steps(x: Any, left: Any) -> None:
    """Signs and the first three steps of x (8 lanes,); uses up eight bits of left (lanes,)."""
    by = LANES
    for j in range(by):
        w = left[j]
        (
            x[j], x[j + by], x[j + 2 * by], x[j + 3 * by],
            x[j + 4 * by], x[j + 5 * by], x[j + 6 * by], x[j + 7 * by],
        ) = _eight(
            _signed(x[j], w << 31),
            _signed(x[j + by], w << 30),
            _signed(x[j + 2 * by], w << 29),
            _signed(x[j + 3 * by], w << 28),
            _signed(x[j + 4 * by], w << 27),
            _signed(x[j + 5 * by], w << 26),
            _signed(x[j + 6 * by], w << 25),
            _signed(x[j + 7 * by], w << 24),
        )  # fmt: skip
        left[j] = w >> 8


# A function for each distance, with the distance as a constant.
@_compiled
def _plain_first(x: Any) -> None:
    _three_steps(x, LANES)


@_compiled
def _next_steps(x: Any) -> None:
    _three_steps(x, 8 * LANES)


@_compiled
def _far_steps(x: Any) -> None:
    _three_steps(x, 64 * LANES)


@_compiled
def _last_steps(x: Any, h: Any) -> None:
    """Butterflies over distances from h."""
    size = x.shape[0]
    while 4 * h <= size:
        for start in range(0, size, 4 * h):
            a, b = x[start : start + h], x[start + h : start + 2 * h]
            c, d = x[start + 2 * h : start + 3 * h], x[start + 3 * h : start + 4 * h]
            for j in range(h):
                s, t = a[j] + b[j], a[j] - b[j]
                u, v = c[j] + d[j], c[j] - d[j]
                a[j], b[j] = s + u, t + v
                c[j], d[j] = s - u, t - v
        h *= 4
    if h < size:
        for start in range(0, size, 2 * h):
            a, b = x[start : start + h], x[start + h : start + 2 * h]
            for j in range(h):
                s, t = a[j], b[j]
                a[j], b[j] = s + t, s - t


@_compiled
def rotate(x: Any, bits: Any, left: Any) -> None:
    """H S x for each lane of x (P * lanes,), in place; H x if there are no bits.

    Args:
        x: float32 (P * lanes,).
        bits: uint32 (P / 32, lanes), those of the signs; or (0, lanes).
        left: uint32 (lanes,), memory.
    """
    size, near = x.shape[0], 8 * LANES
    for start in range(0, size, 8 * near):
        for k in range(8):
            first = x[start + k * near : start + (k + 1) * near]
            if bits.shape[0]:
                if k % 4 == 0:
                    left[:] = bits[start // (WORD * LANES) + k // 4]
                _first_steps(first, left)
            else:
                _plain_first(first)
        _next_steps(x[start : start + 8 * near])
    h = 8 * near
    if 8 * h <= size:
        for start in range(0, size, 8 * h):
            _far_steps(x[start : start + 8 * h])
        h *= 8
    _last_steps(x, h)
