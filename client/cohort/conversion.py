"""From uint8 to the features that trainers see, compiled."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from client.cohort.kernels import compiled

__all__ = ["lengths_of", "to_float"]

_LANES = 16  # sums side by side


@compiled
def to_float(q: Any, rows: Any, center: Any, gain: Any, factors: Any, bias: Any, out: Any) -> None:
    """Features as trainers see them: ``gain * (q - center)``, a bias, and zeros as padding.

    Args:
        q: uint8 (N, d), possibly memory-mapped.
        rows: int64 (m,), the rows of q to convert.
        center: float (d,).
        gain: float (d,).
        factors: float (m,), what all features of a row are multiplied by at last; 1 is exact.
        bias: what stands in column d: 1 or 0.
        out: float (m, >= d + 1), overwritten.
    """
    d = q.shape[1]
    for i in range(rows.shape[0]):
        source = q[rows[i]]
        target = out[i]
        factor = factors[i]
        for j in range(d):
            target[j] = (source[j] - center[j]) * gain[j] * factor
        target[d] = bias
        for j in range(d + 1, out.shape[1]):
            target[j] = 0


@compiled
def lengths_of(q: Any, rows: Any, center: Any, gain: Any, lengths: Any) -> None:
    """Norms of features, without the bias, as ``common.softmax.rows_of_norm`` measures them.

    Args:
        q: uint8 (N, d).
        rows: int64 (m,), the rows of q to measure.
        center: float (d,).
        gain: float (d,).
        lengths: float64 (m,), overwritten.
    """
    squares, x = np.empty(_LANES), np.empty(_LANES, gain.dtype)
    for i in range(rows.shape[0]):
        source = q[rows[i]]
        squares[:] = 0
        for start in range(0, source.shape[0], _LANES):
            part = source[start : start + _LANES]
            for j in range(part.shape[0]):
                x[j] = (part[j] - center[start + j]) * gain[start + j]
                squares[j] += np.float64(x[j]) * np.float64(x[j])
        lengths[i] = math.sqrt(squares.sum())
