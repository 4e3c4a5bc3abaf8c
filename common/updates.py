"""How updates of several clients become one weighted sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from common.statistics import exact_sum
from common.types import ClientPlan, IntArray, UpdateBatch

__all__ = ["FieldSums", "added_up", "client_weights", "joined", "rows_at"]

Fields = Mapping[str, npt.NDArray[np.generic]]


def client_weights(plan: ClientPlan, num_examples: IntArray) -> npt.NDArray[np.float64]:
    """Weight of each client in the sums, float64 (m,)."""
    if plan.weighting == "uniform":
        return np.ones(len(num_examples))
    return num_examples.astype(np.float64)


class FieldSums:
    """Weighted sums of named fields, added up in the order of the calls.

    Floats are summed in float64 and returned as float32. Integers always have weight 1, and their
    sums are exact.
    """

    def __init__(self) -> None:
        self._floats: dict[str, npt.NDArray[np.float64]] = {}
        self._integers: dict[str, npt.NDArray[np.uint64]] = {}

    def add(self, row: Fields, weight: float = 1.0) -> None:
        """Add one client's fields, or with weight 1 the sum of several clients' fields."""
        for name, array in row.items():
            if np.issubdtype(array.dtype, np.integer):
                known = self._integers.get(name)
                exact = array.astype(np.uint64)
                self._integers[name] = exact if known is None else exact_sum(known, exact[None])
            else:
                part = np.multiply(array, weight, dtype=np.float64)
                if name in self._floats:
                    self._floats[name] += part
                else:
                    self._floats[name] = part

    @property
    def totals(self) -> dict[str, npt.NDArray[np.generic]]:
        """The sums so far, float64 and uint64."""
        return {**self._floats, **self._integers}

    def row(self) -> dict[str, npt.NDArray[np.generic]]:
        """The sums so far, with a leading axis of length 1."""
        row: dict[str, npt.NDArray[np.generic]] = {}
        for name, total in self._floats.items():
            row[name] = total.astype(np.float32)[None]
        for name, exact in self._integers.items():
            dtype = np.uint32 if exact.max(initial=0) < 2**32 else np.uint64
            row[name] = exact.astype(dtype)[None]
        return row


def added_up(rows: UpdateBatch) -> UpdateBatch:
    """The weighted sum of single clients' rows, in the form that a node sends."""
    sums = FieldSums()
    for i, weight in enumerate(rows.weights.tolist()):
        sums.add({name: array[i] for name, array in rows.fields.items()}, weight)
    return UpdateBatch(
        client_ids=(tuple(client for ids in rows.client_ids for client in ids),),
        num_examples=rows.num_examples.sum(keepdims=True),
        weights=rows.weights.sum(keepdims=True),
        fields=sums.row(),
    )


def joined(batches: Sequence[UpdateBatch]) -> UpdateBatch:
    """The rows of several batches, one after another; without batches none, and no fields."""
    if not batches:
        return UpdateBatch((), np.zeros(0, np.int64), np.zeros(0), {})
    return UpdateBatch(
        client_ids=tuple(ids for batch in batches for ids in batch.client_ids),
        num_examples=np.concatenate([batch.num_examples for batch in batches]),
        weights=np.concatenate([batch.weights for batch in batches]),
        fields={
            name: np.concatenate([batch.fields[name] for batch in batches])
            for name in batches[0].fields
        },
    )


def rows_at(rows: UpdateBatch, index: Sequence[int]) -> UpdateBatch:
    """The rows at some positions, in this order."""
    at = np.asarray(index, np.int64)
    return UpdateBatch(
        client_ids=tuple(rows.client_ids[i] for i in index),
        num_examples=rows.num_examples[at],
        weights=rows.weights[at],
        fields={name: array[at] for name, array in rows.fields.items()},
    )
