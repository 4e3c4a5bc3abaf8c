"""The penalty that ridge regression chooses, against the hat matrix of small data."""

import numpy as np
import pytest

from common.ridge import Solution, auto_ridge, fixed_ridge
from common.statistics import Statistics, feature_statistics, ridge
from common.types import Affine, FeatureSet

Data = tuple[np.ndarray, np.ndarray]


def made(n: int, d: int, k: int, noise: float = 0.5, seed: int = 0) -> Data:
    """Examples with a constant 1, (n, d + 1), and their one-hot labels, (n, k)."""
    rng = np.random.default_rng(seed)
    x = np.concatenate([rng.normal(size=(n, d)), np.ones((n, 1))], axis=1)
    return x, np.eye(k)[(x[:, :k] + noise * rng.normal(size=(n, k))).argmax(1)]


def solved(data: Data) -> Solution:
    x, y = data
    return auto_ridge(x.T @ x, y.T @ x, len(x))


def directly(data: Data, lam: float) -> tuple[float, float]:
    """The criterion and the degrees of freedom by the (n, n) hat matrix."""
    x, y = data
    hat = x @ np.linalg.solve(x.T @ x + lam * np.eye(x.shape[1]), x.T)
    residual, freedom = ((y - hat @ y) ** 2).sum(), float(np.trace(hat))
    return len(x) * float(residual) / (len(x) - freedom) ** 2, freedom


@pytest.mark.parametrize(("n", "d", "k"), [(300, 20, 3), (40, 60, 4), (61, 60, 4), (30, 40, 2)])
def test_the_criterion_is_that_of_the_hat_matrix_and_lambda_is_its_minimum(
    n: int, d: int, k: int
) -> None:
    data = made(n, d, k)
    got = solved(data)
    assert (got.score, got.freedom) == pytest.approx(directly(data, got.lam), rel=1e-7)
    for factor in (0.01, 0.5, 10**-0.1, 10**0.1, 2.0, 100.0):
        score, freedom = directly(data, got.lam * factor)
        assert score >= got.score * (1 - 1e-8) or freedom > 0.7 * n


def test_a_head_with_a_parameter_for_each_example_is_never_chosen() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(40, 60)), np.ones((40, 1))], axis=1)
    data = x, np.eye(2)[rng.integers(0, 2, 40)]  # nothing to learn
    got = solved(data)
    assert got.freedom <= 0.7 * 40
    # The criterion alone would take such a head: it is a ratio of two small numbers there.
    assert directly(data, 1e-4)[0] < got.score


def test_the_head_is_that_of_the_chosen_lambda_to_the_bit() -> None:
    x, y = made(80, 30, 3)
    a, b = x.T @ x, y.T @ x
    got = auto_ridge(a, b, 80)
    np.testing.assert_array_equal(got.matrix, ridge(a, b, got.lam))
    given = fixed_ridge(a, b, 80, got.lam)
    np.testing.assert_array_equal(given.matrix, got.matrix)
    assert (given.freedom, given.score) == (got.freedom, got.score)


def test_any_split_into_clients_chooses_the_same_bits() -> None:
    rng = np.random.default_rng(1)
    q, labels = rng.integers(0, 256, (60, 12), np.uint8), rng.integers(0, 3, 60)
    affine = Affine(np.full(12, 0.02, np.float32), np.full(12, 100.0, np.float32))
    heads = []
    for parts in (1, 7, 60):
        clients = [
            feature_statistics(FeatureSet(q[i], labels[i], affine, ""), 3)
            for i in np.array_split(rng.permutation(60), parts)
        ]
        gram, moments = (
            np.sum([getattr(one, name).astype(np.uint64) for one in clients], axis=0, dtype="u8")
            for name in ("gram", "moments")
        )
        sums = Statistics(gram, moments)
        heads.append(auto_ridge(*sums.in_feature_space(affine), sums.num_examples).matrix)
    np.testing.assert_array_equal(heads[0], heads[1])
    np.testing.assert_array_equal(heads[0], heads[2])


def test_labels_without_any_relation_get_the_strongest_penalty() -> None:
    # Signs that are orthogonal to the labels: whatever is fitted is worse than nothing.
    x = np.array([[1.0, 1], [-1, 1], [1, -1], [-1, -1]])
    y = np.array([[1.0, 0], [0, 1], [0, 1], [1, 0]])
    got = auto_ridge(x.T @ x, (y - 0.5).T @ x, 4)
    assert got.edge == "strongest"
    assert got.metrics["ridge-lambda-edge"] == 1


def test_labels_without_any_noise_get_the_weakest_penalty() -> None:
    rng = np.random.default_rng(2)
    y = np.eye(3)[rng.integers(0, 3, 50)]
    x = y @ rng.normal(size=(3, 3))
    got = auto_ridge(x.T @ x, y.T @ x, 50)
    assert got.edge == "weakest"
    assert got.freedom == pytest.approx(3, rel=1e-3)


def test_repeated_constant_and_empty_columns_do_no_harm() -> None:
    x, y = made(50, 8, 3)
    wide = np.concatenate([x[:, :4], x, np.zeros((50, 2)), np.full((50, 1), 3.0)], axis=1)
    got = solved((wide, y))
    assert np.isfinite(got.matrix).all()
    assert not got.edge
    assert got.score == pytest.approx(directly((wide, y), got.lam)[0], rel=1e-7)
    assert not got.matrix[:, 13:15].any()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_few_examples_of_some_classes_give_a_finite_head(n: int) -> None:
    x, _ = made(n, 20, 5)
    y = np.eye(5)[np.arange(n) % 2]
    got = solved((x, y))
    assert np.isfinite(got.matrix).all()
    assert got.lam > 0
    assert not got.matrix[2:].any()  # classes without examples


def test_a_single_class_is_possible() -> None:
    x, y = made(30, 5, 1)
    got = solved((x, y))
    np.testing.assert_allclose(x @ got.matrix.T, np.ones((30, 1)), rtol=1e-3)
