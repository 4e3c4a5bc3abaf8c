"""How updates of several clients become one weighted sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from common.types import ClientPlan, IntArray

__all__ = ["client_weights", "sum_fields"]

Fields = Mapping[str, npt.NDArray[np.generic]]


def client_weights(plan: ClientPlan, num_examples: IntArray) -> npt.NDArray[np.float64]:
    """Weight of each client in the sums, float64 (m,)."""
    if plan.weighting == "uniform":
        return np.ones(len(num_examples))
    return num_examples.astype(np.float64)


def sum_fields(
    rows: Sequence[Fields], weights: npt.NDArray[np.float64]
) -> dict[str, npt.NDArray[np.generic]]:
    """Weighted sum of each field in the order of the rows, with a leading axis of length 1.

    Floats are summed in float64 and returned as float32; integers with weight 1 stay exact.
    """
    total: dict[str, npt.NDArray[np.generic]] = {}
    for name, first in rows[0].items():
        if np.issubdtype(first.dtype, np.integer):
            exact = np.zeros(first.shape, np.uint64)
            for row in rows:
                exact += row[name].astype(np.uint64)
            dtype = np.uint32 if exact.max(initial=0) < 2**32 else np.uint64
            total[name] = exact.astype(dtype)[None]
        else:
            summed = np.zeros(first.shape, np.float64)
            for row, weight in zip(rows, weights, strict=True):
                summed += weight * row[name].astype(np.float64)
            total[name] = summed.astype(np.float32)[None]
    return total
