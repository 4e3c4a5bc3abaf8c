"""The learning rate that a run chooses."""

from __future__ import annotations

import numpy as np
import pytest

from common.config import load_config, parse_overrides
from common.errors import ConfigError
from common.rates import automatic_rate, curvature
from common.types import FloatArray


def spectrum(values: list[float], n: int, scale: float = 1.0) -> FloatArray:
    """Examples whose ``X^T X / n`` has these eigenvalues; no constant, to know all of them."""
    rng = np.random.default_rng(3)
    left = np.linalg.qr(rng.normal(size=(n, len(values))))[0]
    right = np.linalg.qr(rng.normal(size=(len(values), len(values))))[0]
    made: FloatArray = (scale * np.sqrt(n) * left * np.sqrt(values) @ right).astype(np.float32)
    return made


@pytest.mark.parametrize("n", [5, 40])
def test_curvature_is_the_largest_eigenvalue_of_few_and_of_many_examples(n: int) -> None:
    found = curvature(spectrum([7.0, 2.0, 0.5, 0.1, 0.0], n))
    assert found == pytest.approx((7.0, 9.6), rel=1e-5)


EVEN = [200.0] * 6


def test_the_largest_eigenvalue_alone_sets_the_rate_where_it_does_not_dominate() -> None:
    even, uneven = (automatic_rate(spectrum(v, 9)) for v in (EVEN, [200.0, *[100.0] * 6]))
    assert even == uneven == 8 / 200


def test_a_direction_that_dominates_gets_a_rate_at_which_descent_is_sure() -> None:
    rate = automatic_rate(spectrum([600.0, 1.0, 1.0], 9), batch_size=1000)
    assert rate < 4 / 600


@pytest.mark.parametrize(("optimizer", "power"), [("sgd", 2), ("adam", 1), ("adamw", 1)])
def test_features_times_four_take_a_rate_that_moves_the_logits_alike(
    optimizer: str, power: int
) -> None:
    rates = [
        automatic_rate(spectrum([64.0, 3.0], 9, scale), optimizer=optimizer)  # type: ignore[arg-type]
        for scale in (1.0, 4.0)
    ]
    assert rates[0] / rates[1] == pytest.approx(4**power, rel=0.01)  # three digits are kept


def test_momentum_shortens_each_step() -> None:
    x = spectrum(EVEN, 9)
    assert automatic_rate(x, momentum=0.75) == pytest.approx(automatic_rate(x) / 2)


def test_steps_shorten_with_their_number_in_a_round_and_lengthen_with_the_batch() -> None:
    x = spectrum(EVEN, 9)
    assert automatic_rate(x, local_epochs=4) == pytest.approx(automatic_rate(x) / 2)
    x = spectrum([100.0] * 20, 30)
    assert automatic_rate(x, batch_size=40) == pytest.approx(automatic_rate(x) * 2)
    assert automatic_rate(x, batch_size=50) == automatic_rate(x, batch_size=1000)


def test_a_preconditioned_gradient_does_not_know_the_features_scale() -> None:
    rates = {automatic_rate(spectrum([9.0, 1.0], 9, s), preconditioned=True) for s in (1.0, 50.0)}
    assert len(rates) == 1


def test_the_default_is_auto_and_has_no_number_before_a_run() -> None:
    train = load_config(None).train
    assert train.lr == "auto"
    with pytest.raises(ConfigError, match=r'train.lr="auto" has no number'):
        train.rate(1)


@pytest.mark.parametrize(
    ("given", "is_kept"), [("auto", "auto"), ("0.5", 0.5), ("1", 1.0), ("1e-9", 1e-9)]
)
def test_a_rate_is_auto_or_a_number_also_after_it_was_written(
    given: str, is_kept: float | str
) -> None:
    config = load_config(None, parse_overrides([f"train.lr={given}"]))
    assert config.train.lr == is_kept
    assert type(config.model_validate(config.model_dump(by_alias=True)).train.lr) is type(is_kept)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("automatic", r'train.lr=.automatic. must be "auto", or a number above 0'),
        ("true", 'must be "auto", or a number above 0'),
        ("0", 'train.lr=0 must be "auto", or a number above 0'),
        ("nan", 'train.lr=nan must be "auto", or a number above 0'),
        ("inf", 'train.lr=inf must be "auto", or a number above 0'),
    ],
)
def test_anything_else_is_refused_by_name(given: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load_config(None, parse_overrides([f"train.lr={given}"]))
