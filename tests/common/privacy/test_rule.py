"""The rule's numbers from their formulas, and what it does where they are not the point.

sigma(4, 1e-5) = 1.0817 is the noise of one release, from its closed form.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from common.privacy.rule import cancelled, clip, directions, rounds, served, step
from common.types import Head, UpdateBatch
from server.strategies import build_strategy
from server.strategy import RoundContext

SIGMA = 1.0817


def test_the_noise_that_ends_up_in_the_weights_does_not_depend_on_how_it_is_spread() -> None:
    for clients, examples, number in ((500, 7.5, 10), (500, 60, 40), (2000, 1, 5)):
        bound, z = clip(examples), SIGMA * math.sqrt(number)
        factor = step(clients, z, bound, number)
        deviation = factor * z * bound / clients  # of a round's
        assert deviation * math.sqrt(number) == pytest.approx(1.0)


def test_beyond_the_signal_that_any_head_needs_steps_are_no_longer() -> None:
    enough, more = (step(n, SIGMA * math.sqrt(10), 0.1, 10) for n in (10_000, 1_000_000))
    assert enough == more == pytest.approx(3000.0)
    assert step(3000 * SIGMA * 0.99, SIGMA * math.sqrt(10), 0.1, 10) < enough


def test_noise_that_is_taken_off_again_is_counted_by_what_is_left_of_it() -> None:
    rounds_, c = 8, (1.0, 0.5, 0.375)
    drawn = np.random.default_rng(0).normal(size=(rounds_, 40_000))
    noises: list[np.ndarray[tuple[int, ...], np.dtype[np.float64]]] = []
    for t in range(rounds_):
        before = [c[k] * noises[t - k] for k in range(1, min(3, t + 1))]
        noises.append((drawn[t] - np.sum(before, axis=0)) / c[0])
    left = np.cumsum(noises, axis=0)[rounds_ // 2 :].mean(axis=0).std()
    independent = np.cumsum(drawn, axis=0)[rounds_ // 2 :].mean(axis=0).std()
    assert cancelled(c, rounds_) == pytest.approx(independent / left, rel=0.02)
    assert cancelled(c, rounds_) > 1.5


def test_independent_noise_is_left_whole_in_however_many_rounds() -> None:
    assert cancelled([1.0], 10**6) == 1.0  # a matrix of all rounds would take 8 TB


def test_the_clip_falls_with_the_root_of_the_examples() -> None:
    assert clip(1) == 0.25
    assert clip(400) == pytest.approx(clip(100) / 2)


def test_more_noise_has_fewer_directions() -> None:
    found = [directions(n, SIGMA) for n in (10, 200 * SIGMA + 1, 399 * SIGMA, 400 * SIGMA + 1)]
    assert found == [32, 64, 64, "auto"]


def test_coins_need_more_rounds_than_everyone() -> None:
    numbers = [rounds(name) for name in ("one-shot", "everyone", "min-separation", "poisson")]
    assert numbers == sorted(numbers)
    assert numbers[0] == 1


def norm_after(name: str, args: dict[str, float], number: int) -> tuple[float, float]:
    """How far a signal moves a head, the mean of the last half of the rounds, and noise alone."""
    noise, factor, size = 3e-5, step(500, SIGMA * math.sqrt(number), 0.1, number), 20_000
    told = served(name, args, step=factor, noise=noise, rounds=number)
    strategy = build_strategy(name, {**args, **told.args})
    head = Head.zeros(1, size)
    state, rng, heads = strategy.init(head), np.random.default_rng(0), []
    for t in range(1, number + 1):
        mean = rng.normal(0, noise, (1, size + 1))
        mean[:, : size // 2] += noise  # half of the entries have a signal
        delta = (mean * told.step).astype(np.float32)[None]
        batch = UpdateBatch(((0,),), np.ones(1, np.int64), np.ones(1), {"delta": delta})
        context = RoundContext(t, 500, 500, 1.0, None, 0, 0)  # type: ignore[arg-type]
        state, head = strategy.aggregate(state, head, batch, context)[:2]
        heads.append(head.weight[0])
    final = np.mean(heads[number // 2 :], axis=0)
    return float(final[: size // 2].mean()), float(final[size // 2 :].std())


@pytest.mark.parametrize("number", [5, 10, 40])
@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("fedprox", {}),
        ("fedavgm", {}),
        ("fedavgm", {"momentum": 0.5}),
        ("fedadam", {}),
        ("fedadam", {"beta1": 0.0, "tau": 0.1}),
        ("fedyogi", {"tau": 1e-4}),
        ("fedadagrad", {}),
    ],
)
def test_every_strategy_goes_about_as_far_as_fedavg(
    name: str, args: dict[str, float], number: int
) -> None:
    signal, noise = norm_after(name, args, number)
    as_fedavg, its_noise = norm_after("fedavg", {}, number)
    # Without the rule fedadam's ways are a third in 5 rounds, fedavgm's 7 times as long in 40.
    assert 0.8 < signal / as_fedavg < 2.7
    assert 0.8 < noise / its_noise < 2.7


def test_momentum_that_is_not_there_changes_nothing() -> None:
    assert served("fedavgm", {"momentum": 0.0}, step=7.0, noise=0.1, rounds=10).step == 7.0


def test_a_learning_rate_that_is_set_stays() -> None:
    told = served("fedadam", {"server-lr": 0.5, "tau": 0.02}, step=7.0, noise=0.1, rounds=10)
    assert told.step == pytest.approx(0.2)
    assert not told.args
