"""The temperature of a head: found from sums, checked, and no change of any prediction."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ReplyError
from common.evaluation import calibration_error, losses_of, probabilities_of
from common.ridge import auto_ridge
from common.statistics import feature_statistics
from common.temperature import (
    SHARPNESS,
    check_losses,
    fit_temperature,
    largest_spread,
    losses_by_sharpness,
    ridge_temperature,
    scaled,
)
from common.types import Affine, FeatureSet, Head


def drawn(n: int, k: int, temperature: float, seed: int = 0):
    """Logits that are probabilities' once divided by the temperature, and labels drawn so."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, k))
    terms = np.exp(logits)
    reached = (terms / terms.sum(axis=1, keepdims=True)).cumsum(axis=1)
    labels = (reached > rng.random((n, 1)) * reached[:, -1:]).argmax(axis=1)
    return logits * temperature, labels


@pytest.mark.parametrize("temperature", [1 / 50, 0.3, 1.0, 2.7, 800.0])
@pytest.mark.parametrize("k", [2, 10])
def test_a_known_temperature_is_found_within_two_percent(temperature, k):
    logits, labels = drawn(50_000, k, temperature)
    losses = losses_by_sharpness(logits, labels)
    assert fit_temperature(losses.sum(axis=0), len(labels)) == pytest.approx(temperature, rel=0.02)


def test_the_losses_are_cross_entropies():
    logits, labels = drawn(20, 5, 3.0)
    losses = losses_by_sharpness(logits, labels)
    for i in (0, 1, 24, 31, 48):
        own = logits * SHARPNESS[i]
        want = np.log(np.exp(own - own.max(axis=1, keepdims=True)).sum(axis=1))
        want += own.max(axis=1) - own[np.arange(20), labels]
        np.testing.assert_allclose(losses[:, i], want, rtol=1e-6, atol=1e-12)


@given(st.lists(st.integers(1, 199), max_size=9, unique=True))
def test_any_partition_of_the_examples_gives_the_same_temperature(cuts):
    logits, labels = drawn(200, 4, 7.0)
    parts = np.split(np.arange(200), sorted(cuts))
    total = sum(losses_by_sharpness(logits[p], labels[p]).sum(axis=0) for p in parts)
    whole = fit_temperature(losses_by_sharpness(logits, labels).sum(axis=0), 200)
    assert fit_temperature(total, 200) == pytest.approx(whole, rel=1e-6)


def test_a_few_right_examples_do_not_ask_for_certainty():
    logits, labels = np.array([[2.0, 0.0]] * 9), np.zeros(9, np.int64)
    sharpness = 1 / fit_temperature(losses_by_sharpness(logits, labels).sum(axis=0), 9)
    # About as if one of ten were wrong, whose loss grows with the lead: 19 to 1, not certainty.
    assert 1 / (1 + np.exp(-2 * sharpness)) == pytest.approx(0.944, abs=0.01)


def test_one_class_has_no_temperature():
    losses = losses_by_sharpness(np.ones((5, 1)), np.zeros(5, np.int64))
    assert fit_temperature(losses.sum(axis=0), 5) == 1.0


LIES = {
    "NaN": lambda honest: honest * np.nan,
    "no finite": lambda honest: honest + np.inf,
    "from 0 on": lambda honest: honest - 5,
    "faster": lambda honest: honest * 1e9,
    "faster ": lambda honest: np.full_like(honest, 50.0),
    "convex": lambda honest: np.where(np.arange(len(honest)) == 20, honest * 1.5, honest),
    "expected": lambda honest: honest[:-1],
}


@pytest.mark.parametrize("lie", LIES)
def test_losses_that_no_examples_have_are_refused(lie):
    logits, labels = drawn(300, 10, 1.0)
    honest = losses_by_sharpness(logits, labels).mean(axis=0)
    spread = float(np.ptp(logits, axis=1).max())
    check_losses(honest, 10, spread)
    with pytest.raises(ReplyError, match="no finite" if lie == "NaN" else lie.strip()):
        check_losses(LIES[lie](honest), 10, spread)


def features(n: int, d: int, k: int, apart: float, seed: int = 0) -> FeatureSet:
    """Gaussian classes, so far apart."""
    rng = np.random.default_rng(seed)
    means = np.random.default_rng(99).normal(size=(k, d)) * apart
    labels = rng.integers(0, k, n)
    x = means[labels] + rng.normal(size=(n, d))
    affine = Affine(np.full(d, 0.05, np.float32), np.full(d, 128, np.float32))
    return FeatureSet(np.clip(np.rint(x / 0.05 + 128), 0, 255).astype(np.uint8), labels, affine, "")


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_no_honest_head_is_refused(seed):
    data = features(40, 6, 3, 0.5, seed)
    rng = np.random.default_rng(seed)
    head = Head.from_matrix(rng.normal(size=(3, 7)) * 10 ** rng.uniform(-3, 3))
    check_losses(losses_of(head, data), 3, largest_spread(head, data.affine))


def test_a_scaled_head_predicts_the_same():
    data = features(500, 20, 5, 0.3)
    head = Head.from_matrix(np.random.default_rng(1).normal(size=(5, 21)))
    cold = scaled(head, 0.07)
    want, got = (probabilities_of(h, data, t) for h, t in ((head, 0.07), (cold, 1.0)))
    np.testing.assert_allclose(got, want, atol=1e-4)
    assert (got.argmax(axis=1) == want.argmax(axis=1)).all()


@pytest.mark.parametrize("n", [150, 2000])
def test_sums_alone_give_about_the_temperature_of_unseen_examples(n):
    data, unseen = features(n, 60, 4, 0.2), features(4000, 60, 4, 0.2, seed=1)
    a, b = feature_statistics(data, 4).in_feature_space(data.affine)
    ridge = auto_ridge(a, b, n)
    head = Head.from_matrix(ridge.matrix)
    told = ridge_temperature(ridge.matrix, a, b, ridge.freedom)
    of_unseen = fit_temperature(losses_of(head, unseen) * 4000, 4000)
    assert 1 / 1.7 < told / of_unseen < 1.7
    assert calibration_error(probabilities_of(head, unseen, told), unseen.labels) < 0.08
    assert calibration_error(probabilities_of(head, unseen, 1.0), unseen.labels) > 0.1


def test_the_calibration_error_is_that_of_a_small_example_by_hand():
    # Two bins: [.6, 2/3) holds .62 (right) and .64 (wrong), [14/15, 1] holds .95 (right).
    probabilities = np.array([[0.62, 0.38], [0.36, 0.64], [0.95, 0.05]])
    off = abs(0.62 + 0.64 - 1) + abs(0.95 - 1)
    assert calibration_error(probabilities, np.array([0, 0, 0])) == pytest.approx(off / 3)


def test_certainty_lies_in_the_last_bin():
    assert calibration_error(np.eye(3), np.arange(3)) == 0.0
    assert calibration_error(np.eye(3), np.array([1, 2, 0])) == 1.0
