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

__all__ = ["clipped_sum", "products"]

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
def _add_clipped(rows: Any, bits: Any, clip: Any, total: Any, within: Any, finite: Any) -> None:
    """Add each finite row's integers to total.

    Args:
        rows: float32 (m, n).
        bits: the same memory as uint32.
        clip: float64.
        total: float64 (n,), whole numbers.
        within: bool (m,), overwritten.
        finite: bool (m,), overwritten.
    """
    peaks = np.empty(1, np.uint32)
    unit, squares = np.empty(rows.shape[1]), np.empty(_BLOCK)
    for i in range(rows.shape[0]):
        row = rows[i]
        peaks[0] = _largest(bits[i])
        within[i], finite[i] = peaks[0] < _INFINITE, peaks[0] < _INFINITE
        if peaks[0] == 0 or not finite[i]:
            continue
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
        factor = peak / clip * RESOLUTION
        if peak / clip * norm > 1:
            within[i], factor = False, RESOLUTION / norm
        for j in range(row.shape[0]):
            total[j] += np.trunc(unit[j] * factor)


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
    _add_clipped(rows, rows.view(np.uint32), clip, total, within, finite)
    return total.astype(np.int64).reshape(deltas.shape[1:]), within, finite


@_compiled
def _multiply(dual: Any, x: Any, counts: Any, out: Any) -> None:
    """Each client's dual (K, n) times its x (n, w), in the order of its examples."""
    begin = 0
    for c in range(counts.shape[0]):
        end = begin + counts[c]
        for k in range(dual.shape[0]):
            row = out[c, k]
            row[:] = 0
            for i in range(begin, end):
                factor, source = dual[k, i], x[i]
                for j in range(row.shape[0]):
                    row[j] += factor * source[j]
        begin = end


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
    _multiply(dual, x, counts, out)
    return out
