"""The Gaussian mechanism's privacy against 60 digits of mpmath, never rounded in our favour."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from mpmath import mp, mpf

from common.privacy.gaussian import _delta, composed, gaussian_epsilon, gaussian_sigma

EPSILONS = (1e-3, 0.01, 0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 20.0, 50.0, 100.0)
DELTAS = (1e-12, 1e-9, 1e-6, 1e-5, 1e-3, 0.01, 0.1)


def exact_delta(sigma: float, epsilon: float) -> mpf:
    """Theorem 8 of arXiv 1805.06530, word for word."""
    with mp.workdps(60):
        mu, e = 1 / mpf(sigma), mpf(epsilon)
        return mp.ncdf(mu / 2 - e / mu) - mp.exp(e) * mp.ncdf(-mu / 2 - e / mu)


def test_golden_values() -> None:
    # Mironov and others quote these; here they come from bisecting exact_delta.
    assert abs(gaussian_sigma(1, 1e-5) - 3.7306) < 1e-4
    assert abs(gaussian_sigma(8, 1e-5) - 0.60023) < 1e-5
    for epsilon in (1.0, 8.0):
        low, high = mpf(0.1), mpf(10)
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if exact_delta(middle, epsilon) > 1e-5 else (low, middle)
        assert abs(gaussian_sigma(epsilon, 1e-5) - float(high)) < 1e-8


@pytest.mark.parametrize(("epsilon", "delta"), [*itertools.product(EPSILONS, DELTAS)])
def test_the_noise_is_enough_and_hardly_more(epsilon: float, delta: float) -> None:
    sigma = gaussian_sigma(epsilon, delta)
    assert exact_delta(sigma, epsilon) <= delta
    assert exact_delta(sigma * (1 - 1e-8), epsilon) > delta
    assert abs(_delta(1 / sigma, epsilon) / exact_delta(sigma, epsilon) - 1) < 1e-10
    # What it costs is what was asked for, never more.
    spent = gaussian_epsilon(sigma, delta)
    assert epsilon * (1 - 1e-6) < spent <= epsilon


@pytest.mark.parametrize("rounds", [1, 3, 10, 1000])
@pytest.mark.parametrize("epsilon", [0.01, 1.0, 30.0])
def test_all_rounds_of_a_run_spend_what_was_asked_for_and_never_more(
    epsilon: float, rounds: int
) -> None:
    each = gaussian_sigma(epsilon, 1e-5) * math.sqrt(rounds)
    spent = gaussian_epsilon(composed([each] * rounds), 1e-5)
    assert epsilon * (1 - 1e-7) < spent <= epsilon
    assert gaussian_epsilon(composed([each] * (rounds + 1)), 1e-5) > epsilon


@pytest.mark.parametrize("delta", [1e-12, 1e-5, 0.1])
@pytest.mark.parametrize("sigma", [1e-3, 0.03, 0.3, 1.0, 7.0, 9.9, 10.1, 300.0, 1e6, 1e10])
def test_an_epsilon_is_never_below_the_truth(sigma: float, delta: float) -> None:
    epsilon = gaussian_epsilon(sigma, delta)
    assert exact_delta(sigma, epsilon) <= delta
    if epsilon > 0:
        assert exact_delta(sigma, epsilon * (1 - 1e-6)) > delta
    else:
        assert exact_delta(sigma, 0) <= delta


def test_much_noise_costs_nothing_but_delta() -> None:
    # delta at epsilon 0 is the total variation distance, erf(mu / sqrt 8).
    sigma = 1 / (math.sqrt(8) * 0.1)
    assert math.erf(0.1) > 0.1124
    assert gaussian_epsilon(sigma, 0.1125) == 0.0
    assert gaussian_epsilon(sigma, 0.1124) > 0.0


def test_the_deltas_agree_with_draws() -> None:
    # By hand: the hockey-stick divergence as a mean over draws of the larger distribution.
    sigma, epsilon = 1.0, 1.0
    x = np.random.default_rng(0).normal(1, sigma, 4_000_000)
    gain = np.maximum(0, 1 - np.exp(epsilon - (x - 0.5) / sigma**2))
    slack = 5 * gain.std() / math.sqrt(gain.size)
    assert abs(gain.mean() - float(exact_delta(sigma, epsilon))) < slack


def test_several_releases_cost_what_one_does_whose_squared_mus_add_up() -> None:
    assert composed([2.0] * 4) == 1.0
    assert composed([3.0, 4.0]) == pytest.approx(2.4)  # 1/9 + 1/16 = 25/144
    assert composed([]) == math.inf
    assert composed([1.1]) == 1.1
    assert composed(z for z in (5.0, math.inf)) == 5.0
    assert composed([math.inf] * 2) == math.inf


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_what_has_no_meaning_is_refused_by_its_name(bad: float) -> None:
    with pytest.raises(ValueError, match=f"epsilon is {bad}, expected a finite number above 0"):
        gaussian_sigma(bad, 1e-5)
    with pytest.raises(ValueError, match=f"sigma is {bad}, expected a finite number above 0"):
        gaussian_epsilon(bad, 1e-5)
    with pytest.raises(ValueError, match=f"delta is {bad}, expected between 0 and 1"):
        gaussian_sigma(1, bad)
    with pytest.raises(ValueError, match=f"delta is {bad}, expected between 0 and 1"):
        gaussian_epsilon(1, bad)
