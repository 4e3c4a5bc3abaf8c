"""Wrappers around strategies."""

from __future__ import annotations

import dataclasses

import numpy as np

from common.types import ClientPlan, Head, UpdateBatch
from server.strategies.averaging import Stateless, fedavg
from server.strategy import Positive, RoundContext, S, Strategy

__all__ = ["norm_clipping", "with_clipping"]


def with_clipping(strategy: Strategy[S], bound: float) -> Strategy[S]:
    """Clip each client's delta to an L2 norm of at most ``bound`` before it is summed.

    Sun et al., "Can you really backdoor federated learning?", arXiv 1911.07963. Needs each
    client's update, but only one at a time. Of codecs it tolerates int8, by the rule for single
    updates: one bit makes an update longer by a quarter, and clipping would take that for the
    client's own.

    Raises:
        ValueError: the inner strategy needs individual updates, or (from ``plan``) fields other
            than the delta, which would not be clipped; or the bound is not above 0.
    """
    if strategy.reduce != "sum":
        raise ValueError(f"{strategy.name} does not work on sums, so clipping cannot go inside")
    if not bound > 0:
        raise ValueError(f"bound={bound} must be above 0")

    def plan(state: S, context: RoundContext) -> ClientPlan:
        inner = strategy.plan(state, context)
        if inner.fields != ("delta",) or inner.correction != "none":
            raise ValueError(f"{strategy.name} needs more than the delta: it cannot be clipped")
        return inner

    def clip(_state: S, _head: Head, updates: UpdateBatch) -> UpdateBatch:
        rows = updates.fields["delta"].astype(np.float64)
        norms = np.sqrt(np.square(rows).sum(axis=(1, 2)))
        factors = np.minimum(1.0, bound / np.maximum(norms, bound))
        return dataclasses.replace(
            updates,
            fields={**updates.fields, "delta": (rows * factors[:, None, None]).astype(np.float32)},
        )

    return dataclasses.replace(strategy, plan=plan, reduce="individual", each=clip)


def norm_clipping(*, bound: Positive = 1.0, server_lr: Positive = 1.0) -> Strategy[Stateless]:
    """FedAvg of clipped deltas (Sun et al., arXiv 1911.07963); see ``with_clipping``."""
    clipped = with_clipping(fedavg(server_lr=server_lr), bound)
    return dataclasses.replace(clipped, name="norm_clipping")
