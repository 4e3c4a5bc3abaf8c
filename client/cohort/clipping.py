"""Clipped updates of many clients, compiled: the exact sum of their integers, client by client.

Bit for bit what ``common.privacy.integers.clipped`` gives, which is plain numpy because devices
need it. Sums are float64 of whole numbers below 2^53: exact, and in any order the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

import client.cohort.kernels  # noqa: F401 - it says where compiled code is stored
from common.privacy.integers import FINE, RESOLUTION
from common.types import FloatArray

__all__ = ["clipped_products", "clipped_sum", "products"]

F = TypeVar("F", bound=Callable[..., Any])
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.floating]

_BLOCK = 4096  # squares of at most 2^40 whose sum is exact in float64
_MAGNITUDE, _INFINITE = np.uint32((1 << 31) - 1), np.uint32(0x7F800000)


def _compiled(function: F) -> F:
    return cast("F", numba.njit(nogil=True, cache=True, error_model="numpy")(function))


@numba.njit(nogil=True, cache=True, fastmath={"reassoc"})
def _whole_sum(values: Any) -> Any:
    """A sum of whole numbers that is below 2^53, so that its order does not matter."""
    total = 0.0
    for j in range(values.shape[0]):
        total += values[j]
    return total


@_compiled
def _largest(bits: Any) -> Any:
    """The largest magnitude, as float32's bits, whose order is that of the numbers, NaN last."""
    most = np.uint32(0)
    for j in range(bits.shape[0]):
        magnitude = np.uint32(bits[j] & _MAGNITUDE)
        most = magnitude if magnitude > most else most
    return most


@_compiled
def _add_clipped(row: Any, clip: Any, total: Any, unit: Any, squares: Any) -> Any:
    """Add a row's integers to total, unless it is not finite.

    Args:
        row: float32 (n,).
        clip: float64.
        total: float64 (n,), whole numbers.
        unit: float64 (n,), scratch.
        squares: float64 (_BLOCK,), scratch.

    Returns:
        Whether it is within the clip, and whether it is finite.
    """
    peaks = np.array([_largest(row.view(np.uint32))])
    if peaks[0] == 0 or not peaks[0] < _INFINITE:
        return peaks[0] == 0, peaks[0] == 0
    peak, steps = np.float64(peaks.view(np.float32)[0]), np.int64(0)
    for start in range(0, row.shape[0], _BLOCK):
        source, target = row[start : start + _BLOCK], unit[start : start + _BLOCK]
        size = source.shape[0]
        for j in range(size):
            u = np.float64(source[j]) / peak
            target[j] = u
            step = np.ceil(abs(u) * FINE)
            squares[j] = step * step
        steps += np.int64(_whole_sum(squares[:size]))
    norm = math.sqrt(steps) / FINE
    is_within, factor = peak / clip * norm <= 1, peak / clip * RESOLUTION
    if not is_within:
        factor = RESOLUTION / norm
    for j in range(row.shape[0]):
        total[j] += np.trunc(unit[j] * factor)
    return is_within, True


@_compiled
def _add_rows(rows: Any, clip: Any, total: Any, within: Any, finite: Any) -> None:
    """``_add_clipped`` of each of ``rows``, float32 (m, n); it fills ``within`` and ``finite``."""
    unit, squares = np.empty(rows.shape[1]), np.empty(_BLOCK)
    for i in range(rows.shape[0]):
        within[i], finite[i] = _add_clipped(rows[i], clip, total, unit, squares)


@_compiled
def _multiply(dual: Any, x: Any, begin: Any, end: Any, out: Any, spare: Any) -> None:
    """One client's dual times its x, the examples from begin to end, in their order.

    Two rows and four examples at a time: each number is read and written less often.

    Args:
        dual: (K, M).
        x: (M, w).
        begin: its first example.
        end: behind its last.
        out: (K, w), overwritten.
        spare: (w,), scratch.
    """
    most, width = dual.shape[0], x.shape[1]
    for k in range(0, most, 2):
        one, two = dual[k], dual[min(k + 1, most - 1)]
        first, second = out[k], out[k + 1] if k + 1 < most else spare
        first[:] = 0
        second[:] = 0
        whole = begin + (end - begin) // 4 * 4
        for i in range(begin, whole, 4):
            a, b, c, d = one[i], one[i + 1], one[i + 2], one[i + 3]
            e, f, g, h = two[i], two[i + 1], two[i + 2], two[i + 3]
            p, q, r, s = x[i], x[i + 1], x[i + 2], x[i + 3]
            for j in range(width):
                first[j] = (((first[j] + a * p[j]) + b * q[j]) + c * r[j]) + d * s[j]
                second[j] = (((second[j] + e * p[j]) + f * q[j]) + g * r[j]) + h * s[j]
        for i in range(whole, end):
            a, e, p = one[i], two[i], x[i]
            for j in range(width):
                first[j] += a * p[j]
                second[j] += e * p[j]


@_compiled
def _multiply_each(dual: Any, x: Any, counts: Any, out: Any) -> None:
    """Each client's product, into its part of ``out`` (m, K, w)."""
    spare, begin = np.empty(x.shape[1], x.dtype), 0
    for c in range(counts.shape[0]):
        end = begin + counts[c]
        _multiply(dual, x, begin, end, out[c], spare)
        begin = end


@_compiled
def _add_products(
    dual: Any, x: Any, counts: Any, clip: Any, total: Any, within: Any, finite: Any
) -> None:
    """``_add_clipped`` of each client's product, while it is still in the cache."""
    made, spare = np.empty((dual.shape[0], x.shape[1]), x.dtype), np.empty(x.shape[1], x.dtype)
    unit, squares, begin = np.empty(made.size), np.empty(_BLOCK), 0
    for c in range(counts.shape[0]):
        end = begin + counts[c]
        _multiply(dual, x, begin, end, made, spare)
        within[c], finite[c] = _add_clipped(made.reshape(-1), clip, total, unit, squares)
        begin = end


def clipped_sum(deltas: FloatArray, clip: float) -> tuple[Integers, Flags, Flags]:
    """The sum over clients of ``common.privacy.integers.clipped``, of those that are finite.

    Args:
        deltas: float32 (m, ...).
        clip: a finite number above 0.

    Returns:
        The sum, int64 (...); bool (m,), which are within the clip, as ``is_within`` says; and
        bool (m,), which are finite.
    """
    rows = np.ascontiguousarray(deltas, np.float32).reshape(len(deltas), -1)
    total = np.zeros(rows.shape[1])
    within, finite = np.empty(len(rows), np.bool_), np.empty(len(rows), np.bool_)
    _add_rows(rows, clip, total, within, finite)
    return total.astype(np.int64).reshape(deltas.shape[1:]), within, finite


def clipped_products(
    dual: FloatArray, x: FloatArray, counts: Integers, clip: float
) -> tuple[Integers, Flags, Flags]:
    """``clipped_sum`` of ``products``, without memory for all of them.

    Args:
        dual: float32 (K, M), client after client.
        x: float32 (M, w).
        counts: int64 (m,), each client's number of examples.
        clip: a finite number above 0.

    Returns:
        As ``clipped_sum``: the sum, int64 (K, w), and two of bool (m,).
    """
    total = np.zeros(len(dual) * x.shape[1])
    within, finite = np.empty(len(counts), np.bool_), np.empty(len(counts), np.bool_)
    _add_products(dual, x, counts, clip, total, within, finite)
    return total.astype(np.int64).reshape(len(dual), -1), within, finite


def products(dual: Floats, x: Floats, counts: Integers) -> Floats:
    """Each client's part of ``dual`` times its part of ``x``.

    A library's product of such small matrices takes longer to begin than to compute.

    Args:
        dual: (K, M), client after client.
        x: (M, w).
        counts: int64 (m,), each client's number of examples.

    Returns:
        (m, K, w), of the same dtype.
    """
    out = np.empty((len(counts), len(dual), x.shape[1]), x.dtype)
    _multiply_each(dual, x, counts, out)
    return out
