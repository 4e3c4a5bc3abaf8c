"""Scatter within classes: what is left of a Gram matrix when each class's mean is taken out.

Features give a scatter in which no direction has a sum of squares below 0. A codec's noise takes
directions that hardly vary below 0, and a head on such sums finds classes that differ in nothing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from common.statistics import Statistics
from common.types import Affine

__all__ = ["is_definite", "scaled_scatter", "sound_sums"]

_Array = npt.NDArray[np.float64]

_ROUNDING = 1e-9  # of the sum of squares within classes, as a share of the total sum


def scaled_scatter(
    upper: npt.NDArray[np.uint64], moments: npt.NDArray[np.uint64]
) -> tuple[_Array, _Array]:
    """The scatter within classes, each feature divided by its length, and the lengths.

    Args:
        upper: (D, D), upper triangle of ``sum [q 1]^T [q 1]``; 0 below it.
        moments: (K, D).

    Returns:
        float64 (D, D) and (D,).
    """
    counts = moments[:, -1]
    present = counts > 0
    means = moments[present] / np.sqrt(counts[present, None])
    within = upper + np.triu(upper, 1).T - means.T @ means
    length = np.sqrt(np.maximum(np.diag(upper), 1))
    return within / np.outer(length, length), length


def is_definite(scatter: _Array) -> bool:
    """Whether no direction of ``scaled_scatter`` has a sum of squares below 0, up to rounding."""
    raised = scatter.copy()
    raised[np.diag_indices(len(raised))] += _ROUNDING
    try:
        np.linalg.cholesky(raised)
    except np.linalg.LinAlgError:
        return False
    return True


def sound_sums(sums: Statistics, affine: Affine) -> tuple[_Array, _Array]:
    """A and B of ``Statistics.in_feature_space``, even if a codec's noise is in the sums.

    Exact sums are left as they are. Where noise shows, because the scatter has a direction below 0,
    no direction keeps less than the lowest is below 0: noise is as often above 0 as below. Features
    are compared in units of their spread, in which the noise is the same for all. What the class
    means add stays exact. At 0 instead, cross-validation takes what is lost for a perfect fit: with
    mnist5k's 1,280 features from 50 clients in gram-int8, its head had 21 % right instead of 95 %.

    Returns:
        A, float64 (D, D), and B, float64 (K, D).
    """
    a, b = sums.in_feature_space(affine)
    moments = sums.moments.astype(np.uint64)
    upper = np.zeros((len(a), len(a)), np.uint64)
    upper[np.triu_indices(len(a))] = sums.gram
    return (a if is_definite(scaled_scatter(upper, moments)[0]) else _lifted(a, b)), b


def _lifted(a: _Array, b: _Array) -> _Array:
    """A, with the scatter within classes no lower than its noise."""
    counts = b[:, -1]
    present = counts > 0
    between = (b[present].T / counts[present]) @ b[present]
    spread = np.diag(a) - a[-1] ** 2 / a[-1, -1]
    varies = spread > _ROUNDING * np.diag(a)  # not the 1, nor what is constant
    part = np.ix_(varies, varies)
    unit = np.sqrt(np.outer(spread[varies], spread[varies]))
    values, vectors = np.linalg.eigh((a - between)[part] / unit)
    lifted = a.copy()
    values = np.maximum(values, -values.min(initial=0))
    lifted[part] = between[part] + (vectors * values) @ vectors.T * unit
    return lifted
