"""Codecs that rotate rows, compiled: what is decoded of many clients' rows, without their bytes.

Bit for bit what ``common.codecs.rotation`` gives, which is plain numpy because devices need it.
Here the rows of a few clients lie side by side in a core's nearest cache. Nothing may be fused
or reordered, so there is no fastmath.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

import client.cohort.kernels  # noqa: F401 - it says where compiled code is stored
from common.codecs.codec import Array, Through
from common.codecs.eden import LEVELS, THRESHOLD
from common.codecs.rotation import PASSES, padded
from common.seeding import words
from common.types import FloatArray

__all__ = ["THROUGH"]

F = TypeVar("F", bound=Callable[..., Any])

_WORD = 32  # bits of signs at a time: as many as a number has, so that lanes stay side by side
_TOP = np.uint32(1 << 31)
_LANES = 8  # rows side by side, as many as vector instructions work on at once


def _compiled(function: F) -> F:
    return cast("F", numba.njit(nogil=True, cache=True)(function))


@_compiled
def _butterflies(x: Any, lanes: Any) -> None:
    """H x for each lane of x (P * lanes,), in place; two steps of the numpy version at a time."""
    size, h = x.shape[0], lanes
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
    while h < size:
        for start in range(0, size, 2 * h):
            a, b = x[start : start + h], x[start + h : start + 2 * h]
            for j in range(h):
                s, t = a[j], b[j]
                a[j], b[j] = s + t, s - t
        h *= 2


@_compiled
def _flip(bits: Any, drawn: Any) -> None:
    """Change the signs of numbers, seen as uint32 (P * lanes,), where bits (P / 32, lanes) are 1.

    The bits are used up.
    """
    lanes = drawn.shape[1]
    for w in range(drawn.shape[0]):
        left = drawn[w]
        for p in range(_WORD - 1, -1, -1):
            at = bits[(w * _WORD + p) * lanes : (w * _WORD + p + 1) * lanes]
            for i in range(lanes):
                at[i] ^= left[i] & _TOP
                left[i] += left[i]


@_compiled
def _summed_products(x: Any, y: Any, sums: Any, lanes: Any) -> None:
    """Sums of x * y over each lane, in float64 by folding halves, into the first of ``sums``."""
    half = x.shape[0] // 2
    for j in range(half):
        low = np.float64(x[j]) * np.float64(y[j])
        sums[j] = low + np.float64(x[half + j]) * np.float64(y[half + j])
    half //= 2
    while half >= lanes:
        low_half, high_half = sums[:half], sums[half : 2 * half]
        for j in range(half):
            low_half[j] += high_half[j]
        half //= 2


@_compiled
def _load(rows: Any, x: Any, exponents: Any) -> None:
    """Rows (m, width) into lanes of x (P * lanes,), without their power of two."""
    lanes = exponents.shape[0]
    x[:] = 0
    for i in range(rows.shape[0]):
        row = rows[i]
        top = np.float32(0)
        for j in range(row.shape[0]):
            top = max(top, abs(row[j]))
        exponents[i] = math.frexp(top)[1]
        factor = math.ldexp(1.0, -exponents[i])
        for j in range(row.shape[0]):
            x[j * lanes + i] = np.float32(np.float64(row[j]) * factor)


@_compiled
def _quantize(x: Any, small: Any, large: Any, bound: Any, levels: Any) -> None:
    """The level of each number of x (P * lanes,); ``bound`` (lanes,) parts small from large."""
    lanes = bound.shape[0]
    for start in range(0, x.shape[0], lanes):
        for i in range(lanes):
            y = x[start + i]
            level = large if abs(y) >= bound[i] else small
            levels[start + i] = -level if y < 0 else level


@_compiled
def _store(levels: Any, squares: Any, products: Any, exponents: Any, out: Any) -> None:
    """Lanes of levels (P * lanes,), scaled, into rows (m, width)."""
    lanes = exponents.shape[0]
    for i in range(out.shape[0]):
        ratio = np.float32(squares[i] / products[i]) if squares[i] > 0 else np.float32(0)
        scale = np.float32(np.float64(ratio) * math.ldexp(1.0, exponents[i]))
        target = out[i]
        for j in range(target.shape[0]):
            target[j] = levels[j * lanes + i] * scale


@_compiled
def _rotated_through(
    rows: Any, drawn: Any, small: Any, large: Any, threshold: Any, out: Any
) -> None:
    """What is decoded of rows (n, width).

    Args:
        rows: float32 (n, width), finite.
        drawn: uint32 (n, passes, P / 32), bits of the signs.
        small: float32, the level of numbers below the threshold.
        large: float32, the level of the others.
        threshold: in root mean squares; infinite for one bit.
        out: float32 (n, width), overwritten.
    """
    passes, lanes = drawn.shape[1], _LANES
    length = drawn.shape[2] * _WORD
    size = length * lanes
    x, levels = np.empty(size, np.float32), np.empty(size, np.float32)
    bits, level_bits = x.view(np.uint32), levels.view(np.uint32)
    signs = np.zeros((passes, drawn.shape[2], lanes), np.uint32)
    used = np.empty((drawn.shape[2], lanes), np.uint32)
    sums, squares = np.empty(size // 2, np.float64), np.empty(lanes, np.float64)
    exponents, bound = np.zeros(lanes, np.int64), np.full(lanes, np.inf, np.float32)
    for begin in range(0, rows.shape[0], lanes):
        end = min(begin + lanes, rows.shape[0])
        _load(rows[begin:end], x, exponents)
        for i in range(end - begin):
            signs[:, :, i] = drawn[begin + i]
        _summed_products(x, x, sums, lanes)
        squares[:] = sums[:lanes]
        for k in range(passes):
            used[:] = signs[k]
            _flip(bits, used)
            _butterflies(x, lanes)
        if threshold < np.inf:
            _summed_products(x, x, sums, lanes)
            for i in range(lanes):
                bound[i] = np.float32(threshold * math.sqrt(sums[i] / length))
        _quantize(x, small, large, bound, levels)
        _summed_products(x, levels, sums, lanes)
        for k in range(passes - 1, -1, -1):
            _butterflies(levels, lanes)
            used[:] = signs[k]
            _flip(level_bits, used)
        _store(levels, squares, sums, exponents, out[begin:end])


def _rotating(small: float, large: float, threshold: float) -> Through:
    levels = np.float32(small), np.float32(large)

    def through(arrays: Array, seeds: npt.NDArray[np.uint64]) -> Array:
        rows: FloatArray = np.ascontiguousarray(arrays, np.float32).reshape(-1, arrays.shape[-1])
        counts = np.arange(len(rows) // len(seeds), dtype=np.uint64)
        states = words(seeds[:, None], counts).reshape(-1, 1)
        length = padded(rows.shape[1])
        drawn = words(states, np.arange(PASSES * length // 64, dtype=np.uint64))
        bits = drawn.astype("<u8", copy=False).view("<u4").astype(np.uint32, copy=False)
        bits = bits.reshape(len(rows), PASSES, length // _WORD)
        out = np.empty_like(rows)
        _rotated_through(rows, bits, *levels, threshold, out)
        return out.reshape(arrays.shape)

    return through


THROUGH: Mapping[str, Through] = {
    "drive": _rotating(1.0, 1.0, math.inf),
    "eden": _rotating(LEVELS[0], LEVELS[2], THRESHOLD),
}
"""By a codec's name, what takes the place of its ``through``."""
