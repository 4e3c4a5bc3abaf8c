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
_TILE = 16  # numbers of a row that are loaded at a time: a cache line
_LANES = 32  # rows side by side: some vector instructions in each of the shortest loops,
_BLOCK = 64  # numbers of each of these rows that take their first steps together
_LONG = 512  # but half as many of rows that are longer than this


def _compiled(function: F) -> F:
    return cast("F", numba.njit(nogil=True, cache=True)(function))


@_compiled
def _flip(bits: Any, signs: Any) -> None:
    for j in range(bits.shape[0]):
        bits[j] ^= signs[j]


@_compiled
def _steps(x: Any, h: Any, end: Any) -> None:
    """Butterflies over distances h, 2 h, ... below end; two steps of the numpy version at once."""
    size = x.shape[0]
    while 4 * h <= end:
        for start in range(0, size, 4 * h):
            a, b = x[start : start + h], x[start + h : start + 2 * h]
            c, d = x[start + 2 * h : start + 3 * h], x[start + 3 * h : start + 4 * h]
            for j in range(h):
                s, t = a[j] + b[j], a[j] - b[j]
                u, v = c[j] + d[j], c[j] - d[j]
                a[j], b[j] = s + u, t + v
                c[j], d[j] = s - u, t - v
        h *= 4
    if h < end:
        for start in range(0, size, 2 * h):
            a, b = x[start : start + h], x[start + h : start + 2 * h]
            for j in range(h):
                s, t = a[j], b[j]
                a[j], b[j] = s + t, s - t


@_compiled
def _rotate(x: Any, signs: Any, lanes: Any) -> None:
    """H S x for each lane of x (P * lanes,), in place; H x if there are no signs."""
    bits, size = x.view(np.uint32), x.shape[0]
    block = min(_BLOCK * lanes, size)  # what is near takes its steps while it is in the cache
    for start in range(0, size, block):
        if signs.shape[0]:
            _flip(bits[start : start + block], signs[start : start + block])
        _steps(x[start : start + block], lanes, block)
    _steps(x, block, size)


@_compiled
def _spread(drawn: Any, signs: Any) -> None:
    """Bits (lanes, P / 32) to the top bits of signs (P * lanes,)."""
    lanes = drawn.shape[0]
    left = np.empty(lanes, np.uint32)
    for w in range(drawn.shape[1]):
        for i in range(lanes):
            left[i] = drawn[i, w]
        for p in range(_WORD):
            at = signs[(w * _WORD + p) * lanes : (w * _WORD + p + 1) * lanes]
            for i in range(lanes):
                at[i] = (left[i] << (_WORD - 1 - p)) & _TOP


@_compiled
def _summed_products(x: Any, y: Any, sums: Any, lanes: Any) -> None:
    """Sums of x * y over each lane, in float64 by folding halves, into the first of ``sums``."""
    half = x.shape[0] // 2
    a, b, c, d = x[:half], y[:half], x[half:], y[half:]
    for j in range(half):
        low, high = np.float64(a[j]) * np.float64(b[j]), np.float64(c[j]) * np.float64(d[j])
        sums[j] = low + high
    half //= 2
    while half >= lanes:
        first, second = sums[:half], sums[half : 2 * half]
        for j in range(half):
            first[j] += second[j]
        half //= 2


@_compiled
def _load(rows: Any, factors: Any, x: Any, lanes: Any) -> None:
    """Rows (m, width) times their factors into lanes of x (P * lanes,)."""
    x[:] = 0
    for start in range(0, rows.shape[1], _TILE):
        end = min(start + _TILE, rows.shape[1])
        for i in range(rows.shape[0]):
            source, target = rows[i, start:end], x[start * lanes + i :: lanes]
            for j in range(end - start):
                target[j] = np.float32(np.float64(source[j]) * factors[i])


@_compiled
def _quantize(x: Any, small: Any, large: Any, bound: Any, levels: Any) -> None:
    """The level of each number of x (P * lanes,); ``bound`` (lanes,) parts small from large."""
    lanes = bound.shape[0]
    for start in range(0, x.shape[0], lanes):
        source, target = x[start : start + lanes], levels[start : start + lanes]
        for i in range(lanes):
            y = source[i]
            level = large if abs(y) >= bound[i] else small
            target[i] = -level if y < 0 else level


@_compiled
def _store(levels: Any, scales: Any, out: Any, lanes: Any) -> None:
    """Lanes of levels (P * lanes,), scaled, into rows (m, width)."""
    for start in range(0, out.shape[1], _TILE):
        end = min(start + _TILE, out.shape[1])
        for i in range(out.shape[0]):
            source, target = levels[start * lanes + i :: lanes], out[i, start:end]
            for j in range(end - start):
                target[j] = source[j] * scales[i]


@_compiled
def _rotated_through(
    rows: Any, powers: Any, drawn: Any, small: Any, large: Any, threshold: Any, lanes: Any, out: Any
) -> None:
    """What is decoded of rows (n, width).

    Args:
        rows: float32 (n, width), finite.
        powers: float64 (n,), the power of two that is at most twice a row's largest magnitude.
        drawn: uint32 (n, passes, P / 32), bits of the signs.
        small: float32, the level of numbers below the threshold.
        large: float32, the level of the others.
        threshold: in root mean squares; infinite for one bit.
        lanes: number of rows side by side.
        out: float32 (n, width), overwritten.
    """
    passes, length = drawn.shape[1], drawn.shape[2] * _WORD
    size = length * lanes
    x, levels = np.empty(size, np.float32), np.empty(size, np.float32)
    signs = np.empty((passes, size), np.uint32)
    own = np.zeros((lanes, passes, drawn.shape[2]), np.uint32)
    sums, squares = np.empty(size // 2, np.float64), np.empty(lanes, np.float64)
    scales, bound = np.zeros(lanes, np.float32), np.full(lanes, np.inf, np.float32)
    for begin in range(0, rows.shape[0], lanes):
        end = min(begin + lanes, rows.shape[0])
        _load(rows[begin:end], 1 / powers[begin:end], x, lanes)
        own[: end - begin] = drawn[begin:end]
        _summed_products(x, x, sums, lanes)
        squares[:] = sums[:lanes]
        for k in range(passes):
            _spread(own[:, k], signs[k])
            _rotate(x, signs[k], lanes)
        if threshold < np.inf:
            _summed_products(x, x, sums, lanes)
            for i in range(lanes):
                bound[i] = np.float32(threshold * math.sqrt(sums[i] / length))
        _quantize(x, small, large, bound, levels)
        _summed_products(x, levels, sums, lanes)
        for i in range(end - begin):
            ratio = np.float32(squares[i] / sums[i]) if squares[i] > 0 else np.float32(0)
            scales[i] = np.float32(np.float64(ratio) * powers[begin + i])
        _rotate(levels, signs[0, :0], lanes)
        for k in range(passes - 1, 0, -1):
            _rotate(levels, signs[k], lanes)
        _flip(levels.view(np.uint32), signs[0])
        _store(levels, scales, out[begin:end], lanes)


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
        powers = np.ldexp(1.0, np.frexp(np.abs(rows).max(axis=1))[1])
        out, lanes = np.empty_like(rows), _LANES if length <= _LONG else _LANES // 2
        _rotated_through(rows, powers, bits, *levels, threshold, lanes, out)
        return out.reshape(arrays.shape)

    return through


THROUGH: Mapping[str, Through] = {
    "drive": _rotating(1.0, 1.0, math.inf),
    "eden": _rotating(LEVELS[0], LEVELS[2], THRESHOLD),
}
"""By a codec's name, what takes the place of its ``through``."""
