import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.personal import personal_head
from common.types import Affine, FeatureSet, Head

K = 4


def client(n: int, d: int, seed: int) -> tuple[FeatureSet, Head]:
    rng = np.random.default_rng(seed)
    affine = Affine(np.full(d, 0.02, np.float32), rng.uniform(100, 150, d).astype(np.float32))
    q = rng.integers(0, 256, (n, d), dtype=np.uint8)
    head = Head.from_matrix(rng.normal(size=(K, d + 1)))
    return FeatureSet(q, rng.integers(0, K, n), affine, "f"), head


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 40), st.floats(0.01, 1e4), st.integers(0, 99))
def test_it_is_the_formula_of_the_paper_whichever_system_is_smaller(
    n: int, d: int, lam: float, seed: int
) -> None:
    features, head = client(n, d, seed)
    x, y = features.x.astype(np.float64), np.eye(K)[features.labels]
    w = head.matrix.astype(np.float64)
    want = np.linalg.solve(x.T @ x + lam * np.eye(d + 1), (y.T @ x + lam * w).T).T
    got = personal_head(features, head, lam)
    assert got.dtype == np.float64
    assert np.linalg.norm(got - want) <= 1e-9 * np.linalg.norm(want)


@pytest.mark.parametrize("n", [5, 50])
def test_nothing_near_it_is_better(n: int) -> None:
    lam = 3.0
    features, head = client(n, 20, 1)
    x, y = features.x.astype(np.float64), np.eye(K)[features.labels]

    def objective(v: np.ndarray) -> float:
        fit = ((x @ v.T - y) ** 2).sum() / 2
        return float(fit + lam / 2 * ((v - head.matrix) ** 2).sum())

    own = personal_head(features, head, lam)
    least = objective(own)
    rng = np.random.default_rng(0)
    for _ in range(20):
        step = rng.normal(size=own.shape)
        # A quadratic's minimum: any step costs at least lam / 2 times its square.
        assert objective(own + 1e-3 * step) >= least + lam / 2 * 1e-6 * (step**2).sum() - 1e-9


@pytest.mark.parametrize("n", [5, 50])
def test_a_huge_lambda_leaves_the_head_of_all_and_a_tiny_one_fits_the_client(n: int) -> None:
    features, head = client(n, 60, 2)
    far = personal_head(features, head, 1e15)
    np.testing.assert_allclose(far, head.matrix, rtol=0, atol=1e-9)
    x, y = features.x.astype(np.float64), np.eye(K)[features.labels]
    near = personal_head(features, head, 1e-6)
    np.testing.assert_allclose(x @ near.T, y, atol=1e-4)  # fewer examples than features


def test_nothing_given_is_changed() -> None:
    features, head = client(10, 6, 3)
    q, labels, matrix = features.q.copy(), features.labels.copy(), head.matrix
    personal_head(features, head, 1.0)
    assert (features.q == q).all()
    assert (features.labels == labels).all()
    assert (head.matrix == matrix).all()
