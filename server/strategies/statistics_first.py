"""A round of statistics before a gradient strategy, for its first head and a preconditioner."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from common.config.numbers import Auto
from common.ridge import Solution, auto_ridge, fixed_ridge
from common.scatter import sound_sums
from common.statistics import Statistics, exact_sum
from common.temperature import ridge_temperature
from common.types import ClientPlan, FloatArray, Head, UpdateBatch
from server.strategy import (
    Metrics,
    NonNegativeOrAuto,
    PositiveOrAuto,
    RoundContext,
    Strategy,
    with_metrics,
)

__all__ = ["PreparedState", "with_statistics"]

_Each = Callable[[Any, Head, UpdateBatch], UpdateBatch]


@dataclass(frozen=True, eq=False)
class PreparedState:
    """The result of the statistics, and the inner strategy's state.

    Attributes:
        prepared: 1 once the statistics are in.
        preconditioner: P, float32 (D, D); no rows if there is none.
        inner: the inner strategy's state.
    """

    prepared: int
    preconditioner: FloatArray
    inner: Any


def with_statistics(
    strategy: Strategy[Any],
    *,
    temperature: NonNegativeOrAuto = 0.0,
    init_lambda: PositiveOrAuto = "auto",
    precondition_lambda: NonNegativeOrAuto = 0.0,
) -> Strategy[PreparedState]:
    """Let every client send its statistics in the first round, as in Fed3R.

    Frozen features are badly conditioned, and zero is far from a good head. The sums A = X^T X and
    B = Y^T X of all n examples help: the clients' data gradient is multiplied by
    ``P = (A / n + lam / n I)^-1``, and the first head is a ridge head (Fed3R, arXiv 2406.01116).

    Args:
        strategy: the strategy from the second round on.
        temperature: factor on the ridge head, so that its softmax gives confident probabilities;
            0: the first head is not replaced; "auto": see common.temperature.ridge_temperature.
        init_lambda: penalty of the ridge head; "auto": chosen from the sums, see common.ridge.
        precondition_lambda: lam of P, which each client gets once; "auto": the penalty that would
            be chosen for the ridge head; 0: no preconditioner.
    """

    def init(head: Head) -> PreparedState:
        width = head.num_features + 1
        return PreparedState(0, np.zeros((0, width), np.float32), strategy.init(head))

    def plan(state: PreparedState, context: RoundContext) -> ClientPlan:
        if not state.prepared:
            return ClientPlan(
                kind="statistics", fields=("gram", "moments"), weighting="uniform", everyone=True
            )
        inner = strategy.plan(state.inner, context)
        if not len(state.preconditioner):
            return inner
        constant = {**inner.constant, "preconditioner": state.preconditioner}
        return dataclasses.replace(inner, constant=constant)

    def aggregate(
        state: PreparedState, head: Head, updates: UpdateBatch, context: RoundContext
    ) -> tuple[PreparedState, Head, Metrics]:
        if not state.prepared:
            gram, moments = (
                exact_sum(np.zeros(rows.shape[1:], np.uint64), rows)
                for rows in (updates.fields["gram"], updates.fields["moments"])
            )
            sums = Statistics(gram, moments)
            (a, b), n = sound_sums(sums, context.affine), sums.num_examples
            lambdas = (init_lambda if temperature else 0.0, precondition_lambda)
            chosen = auto_ridge(a, b, n) if "auto" in lambdas else None
            p = _inverse(a, float(n), _number(precondition_lambda, chosen))
            if temperature:
                start = chosen
                if start is None or init_lambda != "auto":
                    start = fixed_ridge(a, b, n, _number(init_lambda, chosen))
                head = _first_head(start, a, b, temperature)
            metrics = _metrics(chosen, *(lam == "auto" for lam in lambdas))
            return PreparedState(1, p, strategy.init(head)), head, metrics
        given = strategy.aggregate(state.inner, head, updates, context)
        inner, head, metrics = with_metrics(given, strategy.name)
        return dataclasses.replace(state, inner=inner), head, metrics

    each = _inside(strategy.each)
    return dataclasses.replace(strategy, init=init, plan=plan, aggregate=aggregate, each=each)


def _first_head(
    start: Solution, a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], factor: float | Auto
) -> Head:
    """The ridge head times a factor; "auto": one over its temperature."""
    if factor == "auto":
        factor = 1 / ridge_temperature(start.matrix, a, b, start.freedom)
    return Head.from_matrix(factor * start.matrix)


def _metrics(chosen: Solution | None, of_head: bool, of_steps: bool) -> dict[str, float]:
    """What was chosen for the first head, and for the preconditioner."""
    if chosen is None:
        return {}
    head = chosen.metrics if of_head else {}
    return head | ({"precondition-lambda": chosen.lam} if of_steps else {})


def _number(lam: float | Auto, chosen: Solution | None) -> float:
    """The chosen lambda in place of "auto"."""
    if lam != "auto":
        return lam
    if chosen is None:
        raise ValueError("no lambda was chosen")
    return chosen.lam


def _inverse(a: npt.NDArray[np.float64], count: float, lam: float) -> FloatArray:
    """P, float32 (D, D); no rows if lam is 0."""
    if not lam:
        return np.zeros((0, len(a)), np.float32)
    inverse = np.linalg.inv((a + lam * np.eye(len(a))) / count)
    symmetric: FloatArray = ((inverse + inverse.T) / 2).astype(np.float32)
    return symmetric


def _inside(each: _Each | None) -> _Each | None:
    """The inner strategy's ``each``, called with the inner state."""
    if each is None:
        return None
    return lambda state, head, rows: each(state.inner, head, rows)
