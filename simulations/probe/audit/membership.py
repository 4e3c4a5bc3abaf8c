"""Whether a client took part: the strongest test there is, and what it says about epsilon.

The adversary knows all other clients' updates and the canary's own. Of a release it takes off what
it knows, so that noise alone, or noise and the canary, is left. By Neyman and Pearson no test beats
the likelihood ratio, which for normal noise rests on the product of what is left and the canary.
Auditing by canaries: Jagielski et al., arXiv 2006.07709; by the curve of a normal mechanism: Nasr
et al., "Tight auditing of differentially private machine learning", arXiv 2302.07956.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv, log_ndtr, ndtr, ndtri

__all__ = ["Membership", "epsilon_of", "judged"]

Doubles = npt.NDArray[np.float64]

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Membership:
    """What a test over many draws of the noise showed.

    Attributes:
        draws: of the noise with the canary, and as many without.
        right: share of right answers, if both are as likely; 0.5 is guessing.
        mu: distance of the two means in standard deviations of the noise.
        epsilon: with 95 % confidence the release's epsilon is at least that, at its delta.
    """

    draws: int
    right: float
    mu: float
    epsilon: float


def judged(inside: Doubles, outside: Doubles, threshold: float, delta: float) -> Membership:
    """Judge the scores of a test.

    Args:
        inside: float64 (n,), scores of releases with the canary; larger ones speak for it.
        outside: float64 (n,), without it.
        threshold: a score above it is taken for the canary. It must not depend on these scores, or
            the bound does not hold.
        delta: of the release.
    """
    missed = int((inside <= threshold).sum())
    alarms = int((outside > threshold).sum())
    n, m = len(inside), len(outside)
    # Each of the two rates is exceeded with half of what is left to chance.
    most = [_upper(missed, n), _upper(alarms, m)]
    mu_least = -ndtri(most[0]) - ndtri(most[1])
    spread = math.sqrt((inside.var(ddof=1) + outside.var(ddof=1)) / 2)
    return Membership(
        draws=n,
        right=1 - (missed / n + alarms / m) / 2,
        mu=float(inside.mean() - outside.mean()) / spread if spread else math.inf,
        epsilon=epsilon_of(max(0.0, float(mu_least)), delta),
    )


def _upper(count: int, n: int) -> float:
    """Clopper and Pearson's upper bound on a probability, from so many of n."""
    if count == n:
        return 1.0
    return float(betaincinv(count + 1, n - count, 1 - (1 - _CONFIDENCE) / 2))


def epsilon_of(mu: float, delta: float) -> float:
    """Epsilon of telling N(0, 1) from N(mu, 1), by bisection of its exact delta.

    Balle and Wang, arXiv 1805.06530, equation 6.

    >>> round(epsilon_of(1 / 3.7306, 1e-5), 3), epsilon_of(0.0, 1e-5)
    (1.0, 0.0)
    """
    if mu <= 0 or _delta_of(0.0, mu) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while _delta_of(high, mu) > delta:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _delta_of(middle, mu) > delta else (low, middle)
    return high


def _delta_of(epsilon: float, mu: float) -> float:
    first, second = mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu
    return float(ndtr(first)) - math.exp(min(epsilon + float(log_ndtr(second)), 0.0))
