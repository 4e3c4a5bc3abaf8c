"""The privacy of Gaussian releases, exact, with nothing but ``math``.

Balle, Wang, "Improving the Gaussian mechanism for differential privacy", arXiv 1805.06530, theorem
8; for compositions Dong, Roth, Su, arXiv 1905.02383. Every rounding goes to the side of more noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import lru_cache

__all__ = ["check_delta", "check_positive", "composed", "gaussian_epsilon", "gaussian_sigma"]

# Relative errors of ``_delta`` are below 1e-10 where it is used. Twice what an epsilon allows for,
# so that the epsilon of a sigma made here is never above what was asked for.
_SIGMA_SLACK, _EPSILON_SLACK = 2e-9, 1e-9
_HALVINGS = 1100  # no interval of floats has more; most end after 60
_FROM_FRACTION = 8.0  # where the continued fraction has converged
_FRACTION_TERMS = 60
_SMALL_MU = 0.1
# Nodes on [-1/2, 1/2] and weights; the error is of the order of mu^6 / 2,000,000.
_GAUSS_LEGENDRE = ((-math.sqrt(0.15), 5 / 18), (0.0, 4 / 9), (math.sqrt(0.15), 5 / 18))


def gaussian_sigma(epsilon: float, delta: float) -> float:
    """The least noise multiplier with which one Gaussian release is (epsilon, delta) private.

    Args:
        epsilon: above 0.
        delta: between 0 and 1.

    Raises:
        ValueError: one of them is not.

    >>> round(gaussian_sigma(1, 1e-5), 4), round(gaussian_sigma(8, 1e-5), 5)
    (3.7306, 0.60023)
    """
    check_delta(delta)
    check_positive("epsilon", epsilon)
    high = 1.0
    while _delta(1 / high, epsilon) * (1 + _SIGMA_SLACK) > delta:
        high *= 2
    low = high / 2
    while low > 0 and _delta(1 / low, epsilon) * (1 + _SIGMA_SLACK) <= delta:
        high, low = low, low / 2
    return _least(low, high, lambda s: _delta(1 / s, epsilon) * (1 + _SIGMA_SLACK) <= delta)


@lru_cache(maxsize=256)
def gaussian_epsilon(sigma: float, delta: float) -> float:
    """The least epsilon at which one Gaussian release with this noise multiplier is private.

    Raises:
        ValueError: sigma is not above 0, or delta not between 0 and 1.

    >>> round(gaussian_epsilon(3.7306, 1e-5), 4)
    1.0
    """
    check_delta(delta)
    check_positive("sigma", sigma)
    mu = 1 / sigma

    def is_enough(epsilon: float) -> bool:
        return _delta(mu, epsilon) * (1 + _EPSILON_SLACK) <= delta

    if is_enough(0.0):
        return 0.0
    # The privacy loss is normal with mean mu^2 / 2 and deviation mu: this one it hardly exceeds.
    return _least(0.0, mu * mu / 2 + mu * math.sqrt(2 * math.log(2 / delta)), is_enough)


def composed(multipliers: Iterable[float]) -> float:
    """The noise multiplier of the one Gaussian release that costs what several do.

    1 / sigma^2 is the sum of 1 / z^2; infinity if there are none.

    >>> composed([2.0] * 4)
    1.0
    """
    known = [*multipliers]
    if len(known) == 1:
        return known[0]  # to the last bit
    squared_mu = math.fsum(1 / (z * z) for z in known)
    return 1 / math.sqrt(squared_mu) if squared_mu else math.inf


def _delta(mu: float, epsilon: float) -> float:
    """Phi(a) - e^epsilon Phi(-b), a = mu / 2 - epsilon / mu, b = mu / 2 + epsilon / mu.

    Since b^2 = a^2 + 2 epsilon, e^epsilon Phi(-b) is phi(a) R(b) with Mills' ratio R, and nothing
    overflows. Phi(a) is phi(a) R(-a): for a small mu the two hardly differ, and their difference
    is the integral of -R' = 1 - x R(x) from -a to b, of length mu.
    """
    a, b = mu / 2 - epsilon / mu, mu / 2 + epsilon / mu
    density = math.exp(-a * a / 2) / math.sqrt(2 * math.pi)
    if density == 0:
        return float(a > 0)
    if mu < _SMALL_MU:
        xs = ((epsilon / mu + mu * node, weight) for node, weight in _GAUSS_LEGENDRE)
        return density * mu * math.fsum(weight * (1 - x * _mills(x)) for x, weight in xs)
    if a < 0:
        return density * (_mills(-a) - _mills(b))
    return math.erfc(-a / math.sqrt(2)) / 2 - density * _mills(b)


def _mills(x: float) -> float:
    """(1 - Phi(x)) / phi(x) for x > -30; beyond 8 by Laplace's continued fraction."""
    if x < _FROM_FRACTION:
        return math.sqrt(math.pi / 2) * math.exp(x * x / 2) * math.erfc(x / math.sqrt(2))
    below = x
    for k in range(_FRACTION_TERMS, 0, -1):
        below = x + k / below
    return 1 / below


def _least(low: float, high: float, is_enough: Callable[[float], bool]) -> float:
    """The least number up to ``high`` that is enough; ``high`` is, and ``low`` is not."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        if is_enough(middle):
            high = middle
        else:
            low = middle
    return high


def check_delta(delta: float) -> None:
    """Refuse what is no delta."""
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta}, expected between 0 and 1")


def check_positive(name: str, value: float) -> None:
    """Refuse what is not finite and above 0; the error says its name."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}, expected a finite number above 0")
