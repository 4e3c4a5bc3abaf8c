"""The canary is found as often as the noise of a run allows, and it is the server's own noise."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from common.config import load_config, parse_overrides
from common.privacy.gaussian import gaussian_epsilon, gaussian_sigma
from common.privacy.integers import RESOLUTION
from common.privacy.noise import gaussians, seed_secret
from server.round.private import Decided, Guard
from server.strategies.private import DIGEST_BYTES
from simulations.probe.audit.canary import find_canary, released_noise

pytestmark = pytest.mark.wide

DELTA = 1e-5


def decided(epsilon: float, rounds: int = 10, **changed: Any) -> Decided:
    multiplier = gaussian_sigma(epsilon, DELTA) * math.sqrt(rounds)
    plain = Decided(
        clients=500, examples=7.0, rounds=rounds, norm=1.0, multiplier=multiplier,
        noise=multiplier, clip=0.1, step=1.0, divisor=500.0,
    )  # fmt: skip
    return dataclasses.replace(plain, **changed)


@pytest.mark.parametrize(("epsilon", "rounds"), [(1.0, 1), (4.0, 10), (8.0, 3)])
def test_it_is_as_far_off_as_the_noise_of_all_rounds_says(epsilon: float, rounds: int) -> None:
    found = find_canary(decided(epsilon, rounds), "everyone", 2000, DELTA)
    mu = 1 / gaussian_sigma(epsilon, DELTA)
    # Of two means of 2,000: 5 sqrt(2 / 2000) = 0.16.
    assert found.mu == pytest.approx(mu, abs=0.16 + 0.05 * mu)
    assert found.right == pytest.approx(norm.cdf(mu / 2), abs=0.05)
    assert found.advantage == pytest.approx(2 * found.right - 1)
    assert 0.5 * epsilon < found.epsilon < epsilon


def test_noise_that_is_ten_percent_short_is_noticed() -> None:
    right = decided(4.0)
    short = dataclasses.replace(right, noise=0.9 * right.noise)
    assert find_canary(right, "everyone", 8000, DELTA).epsilon < 4
    assert find_canary(short, "everyone", 8000, DELTA).epsilon > 4


def test_coins_hide_a_client_better_than_the_same_noise_alone() -> None:
    always = find_canary(decided(8.0, rate=1.0), "poisson", 2000, DELTA)
    seldom = find_canary(decided(8.0, rate=0.1), "poisson", 2000, DELTA)
    plain = find_canary(decided(8.0), "everyone", 2000, DELTA)
    assert always.right == pytest.approx(plain.right, abs=0.01)
    assert seldom.right < 0.62 < always.right
    assert seldom.epsilon < always.epsilon < plain.epsilon


def test_a_vote_tells_of_a_client_too() -> None:
    silent = find_canary(decided(4.0), "everyone", 2000, DELTA)
    votes = find_canary(decided(4.0, vote=RESOLUTION), "everyone", 2000, DELTA)
    assert votes.mu is not None
    assert silent.mu is not None
    assert votes.mu / silent.mu == pytest.approx(math.sqrt(2), rel=0.1)


@pytest.mark.parametrize("separation", [1, 4])
def test_it_is_the_noise_that_the_guard_of_a_run_adds(tmp_path: Path, separation: int) -> None:
    chosen = decided(4.0, rounds=3, separation=separation)
    config = load_config(None, parse_overrides(["privacy.epsilon=1000000", "seed=7"]))
    guard = Guard(config, chosen, tmp_path, simulated=True)
    earlier = np.zeros((3 if separation > 1 else 0, DIGEST_BYTES), np.uint8)
    names, noises = [], []
    for number in (1, 2, 3):
        total = np.full(650, number, np.int64)
        released = guard.release(number, total, chosen.clip, earlier)
        names.append(bytes(released.digest))
        noises.append(released.noisy - total)
        if len(earlier):
            earlier[number - 1] = released.digest
    # The same formula with the same names: of each round the first entry, whatever the size.
    for number, name in enumerate(names, 1):
        alone = gaussians(seed_secret(7), number, name, 1, chosen.noise * RESOLUTION)
        many = gaussians(seed_secret(7), number, name, 650, chosen.noise * RESOLUTION)
        assert alone[0] == many[0]
    if separation == 1:
        assert noises[2][0] == np.rint(alone[0])
    deviation = [noise.std() for noise in noises]
    ours = released_noise(chosen, 4000, b"any").std(axis=1)
    np.testing.assert_allclose(ours, deviation, rtol=0.15)  # 650 draws: 5 / sqrt(1300) = 0.14


def test_turns_that_are_far_apart_are_told_by_their_own_noise() -> None:
    # With a separation of all rounds a client takes part once, and is told by the norm of c.
    chosen = decided(4.0, rounds=6, separation=6, noise=2.0)
    found = find_canary(chosen, "min-separation", 4000, DELTA)
    c = [1.0, 1 / 2, 3 / 8, 5 / 16, 35 / 128, 63 / 256]
    mu = math.sqrt(sum(x * x for x in c)) / 2.0
    assert found.mu == pytest.approx(mu, abs=0.12)
    assert found.epsilon < gaussian_epsilon(1 / mu, DELTA)
