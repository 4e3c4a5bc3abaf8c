"""Differential privacy around a strategy: it sees nothing of clients but noisy means."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic

import numpy as np
import numpy.typing as npt

from common.privacy.integers import RESOLUTION, offset_sum
from common.types import ClientPlan, Head, IntArray, UpdateBatch
from server.strategy import Metrics, RoundContext, S, Strategy, with_metrics

__all__ = [
    "DIGEST_BYTES",
    "ONE_SHOT",
    "Digests",
    "PrivateState",
    "Release",
    "Released",
    "Terms",
    "private_reason",
    "with_privacy",
]

ONE_SHOT = ("fed3r", "lda")
"""Closed forms of which there is a release with noise."""

DIGEST_BYTES = 32
"""Length of what a release's noise is named by."""

# Andrew et al. take these for all of their data sets; see ``_next_clip``.
_QUANTILE = 0.5
_CLIP_RATE = 0.2

Digests = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Terms:
    """What a private run has decided on before its first round; all of it is public.

    Attributes:
        divisor: what a sum is divided by: the configured number of clients, or with poisson the
            expected number of a round's. Never the number that took part.
        rounds: configured number.
        clip: bound on the norm of an update in the first round.
        unit_norm: norm that each example's features are given.
        step: factor on the noisy mean.
        vote: what a client adds to the sum, as a whole number, for an update within the clip, and
            takes off for a longer one, so that the clip can follow; 0: it stays as it is.
        chained: whether noise depends on the noise of earlier rounds.
    """

    divisor: float
    rounds: int
    clip: float
    unit_norm: float
    step: float
    vote: int = 0
    chained: bool = False


@dataclass(frozen=True, eq=False)
class Released:
    """What leaves the server of a round's sum.

    Attributes:
        noisy: int64 (m,), the sum with its noise.
        digest: uint8 (32,), by which the noise can be drawn again, by whoever has the secret.
        last: whether the budget has nothing for a later round.
    """

    noisy: IntArray
    digest: Digests
    last: bool


Release = Callable[[int, IntArray, float, Digests], Released]
"""Called with (round, exact sum int64 (m,), clip, digests of all rounds); charges the budget. The
same arguments give the same again, at no further charge."""


@dataclass(frozen=True, eq=False)
class PrivateState(Generic[S]):
    """The state around the inner strategy's.

    Attributes:
        inner: the inner strategy's state.
        clip: bound on the norm of an update in the next round.
        digests: uint8 (rounds, 32), of each round's noise; zeros: nothing was released, or later
            noise does not depend on it.
        heads: float64 (K, d + 1), sum of the heads of the last half of the rounds so far.
        num_heads: how many.
    """

    inner: S
    clip: float
    digests: Digests
    heads: npt.NDArray[np.float64]
    num_heads: int


def private_reason(strategy: Strategy[Any], plan: ClientPlan) -> str:
    """Why a strategy cannot have privacy around it, as a clause; empty: it can.

    Args:
        strategy: the strategy.
        plan: of one of its rounds.
    """
    if strategy.reduce != "sum" or strategy.each is not None:
        return "it reads each client's update, and noise is added to sums"
    if strategy.personal:
        return "clients choose and measure heads of their own with figures that get no noise"
    if plan.kind != "sgd":
        return "its clients send statistics, not updates"
    if plan.correction != "none":
        return "what its clients remember of earlier rounds enters their updates past the noise"
    if plan.fields != ("delta",):
        return f"its clients send {', '.join(plan.fields)}, and only the delta is clipped"
    if plan.everyone or plan.exclude:
        return "it chooses itself whom a round asks, and the budget depends on that"
    return ""


def with_privacy(
    strategy: Strategy[S], terms: Terms, release: Release
) -> Strategy[PrivateState[S]]:
    """User-level differential privacy: ``w <- w + step (sum clip(delta) + noise) / clients``.

    McMahan et al., "Learning differentially private recurrent language models", arXiv 1710.06963,
    with exact integer sums and the noise of ``release``. The inner strategy gets the noisy mean as
    if one client had sent it. The last round's head is the mean of the heads of the last half of
    the rounds, which has less of their noise (Polyak and Juditsky, 1992); it costs no privacy.

    Args:
        strategy: needs no more of clients than the sum of their deltas.
        terms: what the run has decided on.
        release: adds the noise, once the budget is charged.

    Raises:
        ValueError: the strategy cannot have privacy around it (from ``plan``: in this round).
    """
    if reason := private_reason(strategy, ClientPlan()):
        raise ValueError(f"{strategy.name}: {reason}")

    def init(head: Head) -> PrivateState[S]:
        digests = np.zeros((terms.rounds if terms.chained else 0, DIGEST_BYTES), np.uint8)
        heads = np.zeros(head.matrix.shape)
        return PrivateState(strategy.init(head), terms.clip, digests, heads, 0)

    def plan(state: PrivateState[S], context: RoundContext) -> ClientPlan:
        inner = strategy.plan(state.inner, context)
        if reason := private_reason(strategy, inner):
            raise ValueError(f"{strategy.name}: {reason}")
        return dataclasses.replace(
            inner,
            fields=("clipped_delta", "within_clip") if terms.vote else ("clipped_delta",),
            weighting="uniform",
            clip=state.clip,
            unit_norm=terms.unit_norm,
        )

    def aggregate(
        state: PrivateState[S], head: Head, updates: UpdateBatch, context: RoundContext
    ) -> tuple[PrivateState[S], Head, Metrics]:
        number, shape = context.round_number, head.matrix.shape
        total = _exact_total(updates, terms.vote, shape)
        released = release(number, total, state.clip, state.digests)
        step = _mean_update(released.noisy, terms, shape)
        given = strategy.aggregate(state.inner, head, _alone(step), context)
        inner, new, metrics = with_metrics(given, strategy.name)
        averaged = 2 * number > terms.rounds
        after = PrivateState(
            inner,
            _next_clip(released.noisy, state.clip, terms),
            _noted(state.digests, number, released.digest),
            state.heads + new.matrix if averaged else state.heads,
            state.num_heads + averaged,
        )
        if released.last and after.num_heads:
            new = Head.from_matrix(after.heads / after.num_heads)
        return after, new, {**metrics, **({"clip": state.clip} if terms.vote else {})}

    return dataclasses.replace(strategy, init=init, plan=plan, aggregate=aggregate)  # type: ignore[arg-type, return-value]


def _exact_total(updates: UpdateBatch, vote: int, shape: tuple[int, ...]) -> IntArray:
    """The exact sum of all rows, int64; behind it the sum of votes, if there are any.

    A vote is +1 or -1, so that who does not take part changes nothing, and so that one client
    moves their sum by 1: half of what a count of 0 to 2 would.
    """
    clients = sum(len(ids) for ids in updates.client_ids)
    rows = updates.fields.get("clipped_delta", np.zeros((0, *shape), np.uint64))
    total = offset_sum(np.add.reduce(rows, 0, np.uint64), clients).ravel()
    if not vote:
        return total
    within = int(updates.fields["within_clip"].sum(dtype=np.int64)) if clients else 0
    return np.append(total, vote * (2 * within - clients))


def _mean_update(noisy: IntArray, terms: Terms, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """The mean update, in units of the first clip, whatever the clip is now.

    So the noise of a step stays as large as the rule has it while the clip adapts.
    """
    size = int(np.prod(shape))
    scale = terms.clip / RESOLUTION / terms.divisor * terms.step
    mean = noisy[:size].reshape(shape) * scale
    if terms.unit_norm:
        mean[:, -1] = 0.0  # there is no bias then, only its noise
    return mean.astype(np.float32)


def _alone(update: npt.NDArray[np.float32]) -> UpdateBatch:
    """An update as the only one of a round."""
    one = np.ones(1, np.int64)
    return UpdateBatch(((0,),), one, one.astype(np.float64), {"delta": update[None]})


def _next_clip(noisy: IntArray, clip: float, terms: Terms) -> float:
    """Geometric steps towards the median of updates' norms, from the noisy share of short ones.

    Andrew et al., "Differentially private learning with adaptive clipping", arXiv 1905.03871.
    """
    if not terms.vote:
        return clip
    share = 0.5 + float(noisy[-1]) / (2 * terms.vote * terms.divisor)
    return clip * float(np.exp(-_CLIP_RATE * (min(max(share, 0.0), 1.0) - _QUANTILE)))


def _noted(digests: Digests, round_number: int, digest: Digests) -> Digests:
    if not len(digests):
        return digests
    noted = digests.copy()
    noted[round_number - 1] = digest
    return noted
