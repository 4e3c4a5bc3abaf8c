"""The type of an aggregation strategy: pure functions, their context and their results."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real
from typing import Annotated, Any, Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from common.config.numbers import Auto, OrAuto, PositiveOrAuto
from common.errors import RunError
from common.images import ByteArray
from common.seeding import Purpose, stream_state
from common.types import Affine, ClientPlan, Head, UpdateBatch

__all__ = [
    "Aggregated",
    "Count",
    "Metrics",
    "NonNegative",
    "NonNegativeOrAuto",
    "Positive",
    "PositiveOrAuto",
    "RoundContext",
    "Share",
    "ShareOrAuto",
    "Strategy",
    "check_head",
    "mean",
    "total",
    "with_metrics",
]

S = TypeVar("S")
Metrics = Mapping[str, float]
Aggregated = tuple[S, Head] | tuple[S, Head, Metrics]

# Annotations for a strategy's arguments; any other pydantic annotation works as well.
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
NonNegativeOrAuto = Annotated[float | Auto, OrAuto(ge=0)]
ShareOrAuto = Annotated[float | Auto, OrAuto(gt=0, le=1)]

_METRIC_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True, eq=False)
class RoundContext:
    """Facts about round and run that a strategy gets beside its state and the updates.

    Attributes:
        round_number: from 1.
        num_clients: number of clients in the federation: all registered ones or, without
            registration, all that ever joined.
        clients_per_round: configured number of updates that a round wants.
        lr: the clients' learning rate in this round.
        affine: how integer features become x.
        zero_point: the integer feature that stands for 0, uint8 (d,) or the same for all.
        seed: of the run.
    """

    round_number: int
    num_clients: int
    clients_per_round: int
    lr: float
    affine: Affine
    zero_point: ByteArray | int
    seed: int

    @cached_property
    def rng(self) -> np.random.Generator:
        """The round's random generator; it is the same if the round is repeated.

        All users in a round share it, so that a strategy and its wrapper get different draws.
        """
        state = stream_state(self.seed, Purpose.STRATEGY, self.round_number)
        return np.random.Generator(np.random.PCG64(state))


@dataclass(frozen=True)
class Strategy(Generic[S]):
    """A way to aggregate: a frozen value of functions.

    The state is a frozen dataclass of arrays, numbers, tuples of integers and other such
    dataclasses, so that a checkpoint can hold it. No function changes its arguments, except that
    it may draw from the context's random generator.

    Attributes:
        name: for logs and tables.
        init: called with the first head; returns the state before the first round.
        plan: called with (state, context); returns what the clients of a round do.
        aggregate: called with (state, head, updates, context); returns the next state and head
            and, if it likes, metrics of the round: finite numbers by kebab-case name. They appear
            as "strategy" in metrics.jsonl, as strategy/NAME in TensorBoard and as curves in the
            report; their last values are columns of comparisons.
        reduce: "sum" if weighted sums of the fields suffice, so that a node may send one row
            for all its clients; "individual" if each client's update is needed.
        each: with "individual", called with (state, head, rows) for a few clients at a time as
            their rows arrive. The rows that it returns are added up, and ``aggregate`` gets sums.
            Without it, ``aggregate`` needs all rows at once. It gets no context and no random
            numbers, because the number of calls depends on the nodes.
        personal: lambda of personal heads. Unless it is 0, each client ends with a head of its
            own, made from the last global head and its training part (see client.personal).
            -1: each client chooses its own lambda.
        plain_sgd: whether clients must step along plain gradients, without momentum.
        codecs: names of fedhead's codecs that may encode what clients send, see [codec]. None: by
            rule: with sums of training results the unbiased ones, with single updates those that
            change each of them little, with statistics those for statistics. A codec of the user's
            own is never refused.
        codecs_why: why it tolerates no others, as an independent clause, for who asks for one.
    """

    name: str
    init: Callable[[Head], S]
    plan: Callable[[S, RoundContext], ClientPlan]
    aggregate: Callable[[S, Head, UpdateBatch, RoundContext], Aggregated[S]]
    reduce: Literal["sum", "individual"] = "sum"
    each: Callable[[S, Head, UpdateBatch], UpdateBatch] | None = None
    personal: float = 0.0
    plain_sgd: bool = False
    codecs: tuple[str, ...] | None = None
    codecs_why: str = ""

    def for_plan(self, plan: ClientPlan) -> Strategy[S]:
        """The strategy for a plan: if the plan asks everyone, sums are enough."""
        return replace(self, reduce="sum", each=None) if plan.everyone else self


def with_metrics(given: Aggregated[S], name: str) -> tuple[S, Head, dict[str, float]]:
    """The result of ``aggregate`` with metrics, which are empty if it returned none.

    Args:
        given: the state, the head, and perhaps metrics.
        name: the strategy's name, for errors.

    Raises:
        RunError: the result has another form, or a metric is not a finite number or does not have
            a kebab-case name.
    """
    if not (isinstance(given, tuple) and len(given) in (2, 3) and isinstance(given[1], Head)):
        raise RunError(
            f"strategy {name}: aggregate must return (state, head) or (state, head, metrics)"
        )
    state, head, metrics = given if len(given) == 3 else (*given, {})
    if not isinstance(metrics, Mapping):
        raise RunError(f"strategy {name}: metrics are {type(metrics).__name__}, expected a mapping")
    return state, head, {key: _metric(name, key, value) for key, value in metrics.items()}


def _metric(strategy: str, key: Any, value: Any) -> float:
    try:
        is_finite = isinstance(value, Real) and math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        is_finite = False
    if not is_finite or isinstance(value, bool):
        raise RunError(f"strategy {strategy}: metric {key}={value!r} must be a finite number")
    if not (isinstance(key, str) and _METRIC_NAME.fullmatch(key)):
        raise RunError(
            f"strategy {strategy}: a metric is called {key!r}, expected a name such as noise-scale"
        )
    return float(value)


def check_head(new: Head, head: Head, name: str) -> None:
    """Refuse a head that no client could train on.

    Args:
        new: the head that ``aggregate`` returned.
        head: the head that it got.
        name: of the strategy, for errors.

    Raises:
        RunError: names the array, what was found and what was expected.
    """
    for array in ("weight", "bias"):
        got, want = getattr(new, array), getattr(head, array)
        is_array = isinstance(got, np.ndarray)
        if not (is_array and got.shape == want.shape and got.dtype == np.float32):
            what = f"{got.dtype} {got.shape}" if is_array else type(got).__name__
            raise RunError(
                f"strategy {name}: the new head's {array} is {what}, expected float32 {want.shape}"
            )


def total(updates: UpdateBatch, field: str) -> npt.NDArray[np.float64]:
    """Sum of a field over all rows of a "sum" batch, in float64.

    Raises:
        RunError: the plan asked for no such field.
    """
    if field not in updates.fields:
        known = ", ".join(updates.fields)
        raise RunError(f"updates have no field {field!r} (the plan asked for: {known})")
    summed: npt.NDArray[np.float64] = np.add.reduce(updates.fields[field], 0, np.float64)
    return summed


def mean(updates: UpdateBatch, field: str) -> npt.NDArray[np.float64]:
    """Weighted mean of a field over all clients of a "sum" batch."""
    return total(updates, field) / float(updates.weights.sum())
