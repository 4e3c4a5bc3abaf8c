"""The strongest test of membership, on noise whose strength is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import beta, norm

from simulations.probe.audit.membership import epsilon_of, judged

N, DELTA = 4000, 1e-5


def scores(mu: float, seed: int, n: int = N) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(mu, 1, n), rng.normal(0, 1, n)


@pytest.mark.parametrize("mu", [0.3, 1.0, 2.0])
def test_it_finds_how_far_apart_the_two_are_and_never_claims_more_epsilon(mu: float) -> None:
    true = epsilon_of(mu, DELTA)
    found = [judged(*scores(mu, seed), mu / 2, DELTA) for seed in range(40)]
    for one in found:
        # The deviation of a difference of two means of N is sqrt(2 / N) = 0.022.
        assert abs(one.mu - mu) < 5 * 0.03
        assert abs(one.right - norm.cdf(mu / 2)) < 5 * 0.006
    # Each bound holds in 95 of 100 cases: of 40, more than 8 that do not have a chance of 1e-4.
    assert sum(one.epsilon > true for one in found) <= 8
    assert np.median([one.epsilon for one in found]) > 0.65 * true


def test_the_bound_is_of_clopper_and_pearson() -> None:
    inside, outside = scores(1.0, 3, 500)
    missed, alarms = (inside <= 0.5).sum(), (outside > 0.5).sum()
    uppers = [beta.ppf(0.975, count + 1, 500 - count) for count in (missed, alarms)]
    mu = norm.ppf(1 - uppers[1]) - norm.ppf(uppers[0])
    assert judged(inside, outside, 0.5, DELTA).epsilon == pytest.approx(epsilon_of(mu, DELTA))


def test_noise_that_is_ten_percent_short_is_noticed() -> None:
    claimed = epsilon_of(2.0, DELTA)
    inside, outside = scores(2.0 / 0.9, 0, 20_000)
    assert judged(inside, outside, 1.0, DELTA).epsilon > claimed


def test_without_a_difference_it_is_guessing_and_without_noise_certain() -> None:
    same = judged(*scores(0.0, 1), 0.0, DELTA)
    assert abs(same.right - 0.5) < 5 * 0.006
    assert same.epsilon < 1
    sure = judged(np.ones(N), np.zeros(N), 0.5, DELTA)
    assert (sure.right, sure.mu) == (1.0, math.inf)
    # 1 - 0.025^(1 / 4000) is the most that either rate may be.
    most = 1 - 0.025 ** (1 / N)
    assert sure.epsilon == pytest.approx(epsilon_of(-2 * norm.ppf(most), DELTA))


@pytest.mark.parametrize(
    ("sigma", "epsilon"), [(3.7306, 1.0), (0.60023, 8.0)], ids=["epsilon 1", "epsilon 8"]
)
def test_epsilon_of_one_release_is_balle_and_wangs(sigma: float, epsilon: float) -> None:
    # Golden values of the analytic Gaussian mechanism, arXiv 1805.06530, at delta = 1e-5.
    assert epsilon_of(1 / sigma, DELTA) == pytest.approx(epsilon, abs=1e-3)
