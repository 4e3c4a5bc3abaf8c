"""What a test of membership shows: how often it is right, and how large epsilon must be.

The adversary knows all other clients' updates and the canary's own. Of a release it takes off what
it knows, so that noise alone, or noise and the canary, is left. By Neyman and Pearson no test beats
the likelihood ratio. Auditing by canaries: Jagielski et al., arXiv 2006.07709; by the curve of a
normal mechanism: Nasr et al., "Tight auditing of differentially private machine learning",
arXiv 2302.07956.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from common.privacy.gaussian import gaussian_epsilon

__all__ = ["Membership", "judged"]

Doubles = npt.NDArray[np.float64]

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Membership:
    """What a test over many draws of the noise showed.

    Attributes:
        draws: of the noise with the canary, and as many without.
        right: share of right answers, if both are as likely; 0.5 is guessing.
        advantage: how much more often it is taken for there where it is, 0 to 1.
        mu: distance of the two means in standard deviations; None of scores that are not normal.
        epsilon: with 95 % confidence the run's epsilon is at least that, at its delta.
    """

    draws: int
    right: float
    advantage: float
    mu: float | None
    epsilon: float


def judged(
    inside: Doubles, outside: Doubles, threshold: float, delta: float, *, normal: bool = True
) -> Membership:
    """Judge the scores of a test.

    Args:
        inside: float64 (n,), scores of releases with the canary; larger ones speak for it.
        outside: float64 (m,), without it.
        threshold: a score above it is taken for the canary. It must not depend on these scores, or
            the bound does not hold.
        delta: of the release.
        normal: whether scores are normal with one deviation, so that the two rates of error tell
            the whole curve; without that the bound is far lower.
    """
    n, m = len(inside), len(outside)
    missed, alarms = int((inside <= threshold).sum()), int((outside > threshold).sum())
    # Each of the two rates is exceeded with half of what is left to chance.
    most_missed, most_alarms = _upper(missed, n), _upper(alarms, m)
    advantage = 1 - missed / n - alarms / m
    spread = math.sqrt((inside.var(ddof=1) + outside.var(ddof=1)) / 2)
    distance = float(inside.mean() - outside.mean())
    if normal:
        mu_least = -sum(map(_quantile, (most_alarms, most_missed)))
        epsilon = gaussian_epsilon(1 / mu_least, delta) if mu_least > 0 else 0.0
    else:
        # Of any (epsilon, delta) private release: 1 - missed <= e^epsilon alarms + delta, and
        # likewise with the two worlds exchanged (Kairouz, Oh, Viswanath, arXiv 1311.0776).
        pairs = ((most_missed, most_alarms), (most_alarms, most_missed))
        epsilon = max(0.0, *(math.log(max(1 - delta - a, 1e-300) / b) for a, b in pairs))
    return Membership(
        draws=n,
        right=(1 + advantage) / 2,
        advantage=advantage,
        mu=distance / spread if normal and spread else None,
        epsilon=epsilon,
    )


def _quantile(probability: float) -> float:
    """Of the standard normal distribution; infinity at 1."""
    return NormalDist().inv_cdf(probability) if probability < 1 else math.inf


def _upper(count: int, n: int) -> float:
    """Clopper and Pearson's upper bound on a probability: with more, so few of n are too rare.

    It solves ``P(at most count of n) = (1 - confidence) / 2`` for the probability, by bisection.
    """
    if count == n:
        return 1.0
    i = np.arange(count + 1)
    ways = np.array([math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in i])
    low, high = count / n, 1.0
    for _ in range(60):
        p = (low + high) / 2
        rare = (
            np.exp(ways + i * math.log(p) + (n - i) * math.log1p(-p)).sum() < (1 - _CONFIDENCE) / 2
        )
        low, high = (low, p) if rare else (p, high)
    return high
