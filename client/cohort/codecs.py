"""Codecs that rotate rows, compiled: what is decoded of many clients' rows, without their bytes.

Bit for bit what ``common.codecs.rotation`` gives, which is plain numpy because devices need it.
Here some rows lie side by side in a core's nearer caches. Nothing may be fused or reordered, so
there is no fastmath.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

from client.cohort.hadamard import LANES, WORD, rotate
from client.cohort.kernels import word_of
from common.codecs.codec import Array, Through
from common.codecs.eden import LEVELS, THRESHOLD
from common.codecs.rotation import padded, passes
from common.seeding import words
from common.types import FloatArray

__all__ = ["THROUGH", "weighted_sum"]

F = TypeVar("F", bound=Callable[..., Any])

_TILE = 16  # numbers of a row that are loaded at a time: a cache line
_NEAR = 1024  # sums that stay in the nearest cache while rows are added
_MAGNITUDE, _HALF = np.uint32((1 << 31) - 1), np.uint64(32)


def _compiled(function: F) -> F:
    return cast("F", numba.njit(nogil=True, cache=True)(function))


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
def _largest(bits: Any, largest: Any) -> None:
    """Each row's largest magnitude, from float32's bits (n, width): they have the same order."""
    for i in range(bits.shape[0]):
        row, most = bits[i], np.uint32(0)
        for j in range(row.shape[0]):
            magnitude = np.uint32(row[j] & _MAGNITUDE)
            most = magnitude if magnitude > most else most
        largest[i] = most


@_compiled
def _load(rows: Any, factors: Any, x: Any, scaled: Any) -> None:
    """Rows (m, width) times their factors into lanes of x (P * lanes,)."""
    lanes, width = LANES, rows.shape[1]
    for i in range(rows.shape[0]):
        source, factor = rows[i], factors[i]
        target = scaled[i]
        for j in range(width):
            target[j] = np.float32(np.float64(source[j]) * factor)
    for j in range(width):
        at = x[j * lanes : (j + 1) * lanes]
        for i in range(rows.shape[0]):
            at[i] = scaled[i, j]
    x[width * lanes :] = 0


@_compiled
def _take_signs(x: Any, level: Any, levels: Any) -> None:
    """What _quantize gives with one level."""
    for j in range(x.shape[0]):
        levels[j] = -level if x[j] < 0 else level


@_compiled
def _draw(states: Any, bits: Any) -> None:
    """Bits of the signs, (passes, P / 32, lanes), from the states of m rows' streams."""
    flat = bits.reshape(-1, LANES)
    for i in range(states.shape[0]):
        for k in range(flat.shape[0] // 2):
            word = word_of(states[i], k)
            flat[2 * k, i], flat[2 * k + 1, i] = np.uint32(word), np.uint32(word >> _HALF)


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
def _store(levels: Any, scales: Any, bits: Any, out: Any, lanes: Any) -> None:
    """Lanes of levels (P * lanes,), scaled, into rows (m, width)."""
    for start in range(0, out.shape[1], _TILE):
        end = min(start + _TILE, out.shape[1])
        for i in range(out.shape[0]):
            source, target = levels[start * lanes + i :: lanes], out[i, start:end]
            signs = bits[start // WORD, i] >> np.uint32(start % WORD)
            for j in range(end - start):
                target[j] = -(source[j] * scales[i]) if (signs >> j) & 1 else source[j] * scales[i]


@_compiled
def _rotated_through(  # more than seven arguments: compiled code takes no objects
    rows: Any,
    powers: Any,
    states: Any,
    length: Any,
    rotations: Any,
    small: Any,
    large: Any,
    threshold: Any,
    out: Any,
) -> None:
    """What is decoded of rows (n, width).

    Args:
        rows: float32 (n, width), finite.
        powers: float64 (n,), the power of two that is at most twice a row's largest magnitude.
        states: uint64 (n,), the streams of the signs.
        length: P.
        rotations: number of rotations.
        small: float32, the level of numbers below the threshold.
        large: float32, the level of the others.
        threshold: in root mean squares; infinite for one bit.
        out: float32 (n, width), overwritten.
    """
    lanes = LANES
    size = length * lanes
    x, levels = np.zeros(size, np.float32), np.empty(size, np.float32)
    scaled = np.zeros((lanes, rows.shape[1]), np.float32)
    bits = np.zeros((rotations, length // WORD, lanes), np.uint32)
    left = np.empty(lanes, np.uint32)
    sums, squares = np.empty(size // 2, np.float64), np.empty(lanes, np.float64)
    scales, bound = np.zeros(lanes, np.float32), np.empty(lanes, np.float32)
    for begin in range(0, rows.shape[0], lanes):
        end = min(begin + lanes, rows.shape[0])
        _load(rows[begin:end], 1 / powers[begin:end], x, scaled)
        _draw(states[begin:end], bits)
        _summed_products(x, x, sums, lanes)
        squares[:] = sums[:lanes]
        for k in range(rotations):
            rotate(x, bits[k], left)
        if threshold < np.inf:
            _summed_products(x, x, sums, lanes)
            for i in range(lanes):
                bound[i] = np.float32(threshold * math.sqrt(sums[i] / length))
            _quantize(x, small, large, bound, levels)
        else:
            _take_signs(x, small, levels)
        _summed_products(x, levels, sums, lanes)
        for i in range(end - begin):
            ratio = np.float32(squares[i] / sums[i]) if squares[i] > 0 else np.float32(0)
            scales[i] = np.float32(np.float64(ratio) * powers[begin + i])
        rotate(levels, bits[0, :0], left)
        for k in range(rotations - 1, 0, -1):
            rotate(levels, bits[k], left)
        _store(levels, scales, bits[0], out[begin:end], lanes)


@_compiled
def _add_rows(rows: Any, weights: Any, total: Any) -> None:
    """Overwrite total (n,) by the sum of rows (m, n) times weights (m,)."""
    for start in range(0, total.shape[0], _NEAR):
        part = total[start : start + _NEAR]
        for i in range(rows.shape[0]):
            row, weight = rows[i, start : start + _NEAR], weights[i]
            if i == 0:  # not added to zero, which would lose the sign of a zero
                for j in range(part.shape[0]):
                    part[j] = weight * np.float64(row[j])
            else:
                for j in range(part.shape[0]):
                    part[j] += weight * np.float64(row[j])


def weighted_sum(arrays: Array, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The sum of arrays (m, ...) times weights (m,), added up in their order as by FieldSums."""
    total = np.empty(arrays[0].size, np.float64)
    _add_rows(np.ascontiguousarray(arrays).reshape(len(arrays), -1), weights, total)
    return total.reshape(arrays.shape[1:])


def _rotating(small: float, large: float, threshold: float) -> Through:
    levels = np.float32(small), np.float32(large)

    def through(arrays: Array, seeds: npt.NDArray[np.uint64]) -> Array:
        rows: FloatArray = np.ascontiguousarray(arrays, np.float32).reshape(-1, arrays.shape[-1])
        counts = np.arange(len(rows) // len(seeds), dtype=np.uint64)
        states = words(seeds[:, None], counts).reshape(-1)
        largest = np.empty(len(rows), np.uint32)
        _largest(rows.view(np.uint32), largest)
        powers = np.ldexp(1.0, np.frexp(largest.view(np.float32))[1])
        out, length = np.empty_like(rows), padded(rows.shape[1])
        _rotated_through(rows, powers, states, length, passes(length), *levels, threshold, out)
        return out.reshape(arrays.shape)

    return through


THROUGH: Mapping[str, Through] = {
    "drive": _rotating(1.0, 1.0, math.inf),
    "eden": _rotating(LEVELS[0], LEVELS[2], THRESHOLD),
}
"""By a codec's name, what takes the place of its ``through``."""
