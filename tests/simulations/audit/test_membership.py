"""The strongest test of membership, on noise whose strength is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import beta, norm

from common.privacy.gaussian import gaussian_epsilon
from simulations.probe.audit.membership import judged

N, DELTA = 4000, 1e-5


def epsilon_of(mu: float) -> float:
    return gaussian_epsilon(1 / mu, DELTA)


def scores(mu: float, seed: int, n: int = N) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(mu, 1, n), rng.normal(0, 1, n)


@pytest.mark.parametrize("mu", [0.3, 1.0, 2.0])
def test_it_finds_how_far_apart_the_two_are_and_never_claims_more_epsilon(mu: float) -> None:
    true = epsilon_of(mu)
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
    assert judged(inside, outside, 0.5, DELTA).epsilon == pytest.approx(epsilon_of(mu))


def test_noise_that_is_ten_percent_short_is_noticed() -> None:
    claimed = epsilon_of(2.0)
    inside, outside = scores(2.0 / 0.9, 0, 20_000)
    assert judged(inside, outside, 1.0, DELTA).epsilon > claimed


def test_without_a_difference_it_is_guessing_and_without_noise_certain() -> None:
    same = judged(*scores(0.0, 1), 0.0, DELTA)
    assert abs(same.right - 0.5) < 5 * 0.006
    assert same.epsilon < 1
    sure = judged(np.ones(N), np.zeros(N), 0.5, DELTA)
    assert (sure.right, sure.advantage, sure.mu) == (1.0, 1.0, None)
    # 1 - 0.025^(1 / 4000) is the most that either rate may be.
    most = 1 - 0.025 ** (1 / N)
    assert sure.epsilon == pytest.approx(epsilon_of(-2 * norm.ppf(most)))


@pytest.mark.parametrize("draws", [(400, 50), (50, 400), (10, 10)])
def test_without_normal_scores_the_bound_is_of_the_rates_of_error_alone(
    draws: tuple[int, int],
) -> None:
    missed, alarms = draws
    inside = np.repeat([0.0, 1.0], [missed, 1000 - missed])
    outside = np.repeat([1.0, 0.0], [alarms, 1000 - alarms])
    a, b = (beta.ppf(0.975, count + 1, 1000 - count) for count in draws)
    want = max(math.log((1 - DELTA - a) / b), math.log((1 - DELTA - b) / a))
    found = judged(inside, outside, 0.5, DELTA, normal=False)
    assert found.epsilon == pytest.approx(want)
    assert found.mu is None
