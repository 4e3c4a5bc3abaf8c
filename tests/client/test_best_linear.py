"""What federated heads are measured against is the best that a linear head can be."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from client.best_linear import Pooled, best_linear_heads
from common.evaluation import evaluate
from common.ridge import auto_ridge
from common.statistics import feature_statistics
from common.types import Affine, FeatureSet

K = 3


def examples(n: int, d: int, seed: int, *, noise: float = 40.0) -> FeatureSet:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, K, n)
    middles = np.random.default_rng(9).normal(128, 20, (K, d))
    q = np.rint(middles[labels] + rng.normal(0, noise, (n, d))).clip(0, 255).astype(np.uint8)
    gain = np.geomspace(0.001, 0.05, d).astype(np.float32)  # features of very different sizes
    return FeatureSet(q, labels, Affine(gain, np.full(d, 120, np.float32)), "f")


@pytest.mark.parametrize("lam", [0.1, 30.0])
def test_the_logistic_head_is_that_of_scikit_learn(lam: float) -> None:
    features = examples(300, 40, 0)
    model = LogisticRegression(C=1 / lam, fit_intercept=False, tol=1e-10, max_iter=10_000)
    want = model.fit(features.x.astype(np.float64), features.labels).coef_
    got = Pooled(features, K).logistic(lam).matrix
    x = features.x.astype(np.float64)
    np.testing.assert_allclose(x @ got.T, x @ want.T, atol=0.02 * np.abs(x @ want.T).max())


def test_where_it_starts_and_how_it_is_scaled_change_no_minimum() -> None:
    features = examples(400, 30, 1)
    pooled = Pooled(features, K)
    alone = features.x @ pooled.logistic(3.0).matrix.T
    other = Pooled(features, K, Pooled(examples(300, 30, 5), K))
    helped = features.x @ other.logistic(3.0, pooled.logistic(100.0)).matrix.T
    np.testing.assert_allclose(helped, alone, atol=0.02 * np.abs(alone).max())


def far_off(n: int, seed: int) -> FeatureSet:
    """Two classes that a line divides, but some of one lie so far off that squares mislead."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    middle = np.where(labels, np.where(rng.random(n) < 0.2, 250, 134), 122)
    q = np.rint(np.stack([rng.normal(middle, 2), rng.normal(128, 30, n)], axis=1))
    affine = Affine(np.full(2, 0.05, np.float32), np.full(2, 128, np.float32))
    return FeatureSet(q.clip(0, 255).astype(np.uint8), labels, affine, "f")


@pytest.mark.parametrize(
    ("features", "better"), [(examples(400, 60, 2), "ridge"), (far_off(300, 0), "logistic")]
)
def test_the_head_that_does_better_on_held_out_examples_is_the_yardstick(
    features: FeatureSet, better: str
) -> None:
    heads = best_linear_heads(features, int(features.labels.max()) + 1, ridge_lambda=0, seed=0)
    assert heads["centralized"] is heads[better]
    assert heads["ridge"] is not heads["logistic"]


def test_both_heads_choose_their_penalties() -> None:
    features = examples(400, 60, 2)
    heads = best_linear_heads(features, K, ridge_lambda=0, seed=0)
    a, b = feature_statistics(features, K).in_feature_space(features.affine)
    want = auto_ridge(a, b, 400).matrix.astype(np.float32)
    np.testing.assert_array_equal(heads["ridge"].matrix, want)
    again = best_linear_heads(features, K, ridge_lambda=0, seed=0)
    assert [head.sha256 for head in again.values()] == [head.sha256 for head in heads.values()]
    test = examples(2000, 60, 3)
    ends = [Pooled(features, K).logistic(lam) for lam in (1e-3, 1e4)]
    losses = [evaluate(head, test).loss for head in ends]
    assert evaluate(heads["logistic"], test).loss < min(losses)


def test_one_example_has_heads_too() -> None:
    heads = best_linear_heads(examples(1, 5, 4), K, ridge_lambda=0, seed=0)
    assert {name: np.isfinite(head.matrix).all() for name, head in heads.items()} == {
        "ridge": True, "logistic": True, "centralized": True,
    }  # fmt: skip
