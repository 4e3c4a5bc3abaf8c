"""How updates of several clients become one weighted sum."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from common.types import ClientPlan, IntArray

__all__ = ["FieldSums", "client_weights"]

Fields = Mapping[str, npt.NDArray[np.generic]]


def client_weights(plan: ClientPlan, num_examples: IntArray) -> npt.NDArray[np.float64]:
    """Weight of each client in the sums, float64 (m,)."""
    if plan.weighting == "uniform":
        return np.ones(len(num_examples))
    return num_examples.astype(np.float64)


class FieldSums:
    """Weighted sums of named fields, added up in the order in which they come.

    Floats are summed in float64 and read as float32; integers, whose weight is 1, stay exact.
    """

    def __init__(self) -> None:
        self._floats: dict[str, npt.NDArray[np.float64]] = {}
        self._integers: dict[str, npt.NDArray[np.uint64]] = {}

    def add(self, row: Fields, weight: float = 1.0) -> None:
        """Add one client's fields, or a sum (weight 1) of several clients'."""
        for name, array in row.items():
            if np.issubdtype(array.dtype, np.integer):
                exact = array.astype(np.uint64)
                known = self._integers.get(name)
                self._integers[name] = exact if known is None else known + exact
            else:
                part = weight * array.astype(np.float64)
                total = self._floats.get(name)
                self._floats[name] = part if total is None else total + part

    def row(self) -> dict[str, npt.NDArray[np.generic]]:
        """The sums so far, with a leading axis of length 1."""
        row: dict[str, npt.NDArray[np.generic]] = {}
        for name, total in self._floats.items():
            row[name] = total.astype(np.float32)[None]
        for name, exact in self._integers.items():
            dtype = np.uint32 if exact.max(initial=0) < 2**32 else np.uint64
            row[name] = exact.astype(dtype)[None]
        return row
