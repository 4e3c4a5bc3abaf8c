"""What an aggregation strategy is: four pure functions and a word on what they need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from common.types import ClientPlan, Head, UpdateBatch

__all__ = ["Strategy", "mean", "total"]

S = TypeVar("S")


@dataclass(frozen=True)
class Strategy(Generic[S]):
    """A way to aggregate, as a value.

    The state is a frozen dataclass of arrays, numbers, tuples of integers and other such
    dataclasses, so that a checkpoint can hold it. No function changes what it is given.

    Attributes:
        name: for logs and tables.
        init: the state before the first round, given the first head.
        plan: what the clients of a round do (state, round number from 1).
        aggregate: the next state and head from the updates of one round.
        reduce: "sum" if weighted sums of the fields suffice, so that a node may send one row
            for all its clients; "individual" if each client's update is needed.
        each: with "individual", what happens to single clients' rows as they arrive, a few
            clients at a time (state, head, rows); the rows it returns are added up, and
            ``aggregate`` sees sums. Without it, ``aggregate`` needs all rows at once.
        personal: with lambda above 0, each client ends with a head of its own, made from the
            last global one and its training part (see client.personal); 0 for none.
    """

    name: str
    init: Callable[[Head], S]
    plan: Callable[[S, int], ClientPlan]
    aggregate: Callable[[S, Head, UpdateBatch], tuple[S, Head]]
    reduce: Literal["sum", "individual"] = "sum"
    each: Callable[[S, Head, UpdateBatch], UpdateBatch] | None = None
    personal: float = 0.0


def total(updates: UpdateBatch, field: str) -> npt.NDArray[np.float64]:
    """Sum of a field over all rows of a "sum" batch, in float64."""
    summed: npt.NDArray[np.float64] = np.add.reduce(updates.fields[field], 0, np.float64)
    return summed


def mean(updates: UpdateBatch, field: str) -> npt.NDArray[np.float64]:
    """Weighted mean of a field over all clients of a "sum" batch."""
    return total(updates, field) / float(updates.weights.sum())
