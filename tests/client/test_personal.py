from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.personal import OwnExamples, personal_choice
from common.types import Affine, FeatureSet, Head

K = 4


def client(n: int, d: int, seed: int) -> tuple[FeatureSet, Head]:
    rng = np.random.default_rng(seed)
    affine = Affine(np.full(d, 0.02, np.float32), rng.uniform(100, 150, d).astype(np.float32))
    q = rng.integers(0, 256, (n, d), dtype=np.uint8)
    head = Head.from_matrix(rng.normal(size=(K, d + 1)))
    return FeatureSet(q, rng.integers(0, K, n), affine, "f"), head


def near(features: FeatureSet, head: Head, lam: float) -> np.ndarray:
    return OwnExamples(features, K).near(head.matrix.astype(np.float64), lam)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 40), st.floats(0.01, 1e4), st.integers(0, 99))
def test_it_is_the_formula_of_the_paper_whichever_system_is_smaller(
    n: int, d: int, lam: float, seed: int
) -> None:
    features, head = client(n, d, seed)
    x, y = features.x.astype(np.float64), np.eye(K)[features.labels]
    w = head.matrix.astype(np.float64)
    want = np.linalg.solve(x.T @ x + lam * np.eye(d + 1), (y.T @ x + lam * w).T).T
    got = near(features, head, lam)
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

    own = near(features, head, lam)
    least = objective(own)
    rng = np.random.default_rng(0)
    for _ in range(20):
        step = rng.normal(size=own.shape)
        # A quadratic's minimum: any step costs at least lam / 2 times its square.
        assert objective(own + 1e-3 * step) >= least + lam / 2 * 1e-6 * (step**2).sum() - 1e-9


@pytest.mark.parametrize("n", [5, 50])
def test_a_huge_lambda_leaves_the_head_of_all_and_a_tiny_one_fits_the_client(n: int) -> None:
    features, head = client(n, 60, 2)
    far = near(features, head, 1e15)
    np.testing.assert_allclose(far, head.matrix, rtol=0, atol=1e-9)
    x, y = features.x.astype(np.float64), np.eye(K)[features.labels]
    close = near(features, head, 1e-6)
    np.testing.assert_allclose(x @ close.T, y, atol=1e-4)  # fewer examples than features


def test_nothing_given_is_changed() -> None:
    features, head = client(10, 6, 3)
    q, labels, matrix = features.q.copy(), features.labels.copy(), head.matrix
    near(features, head, 1.0)
    assert (features.q == q).all()
    assert (features.labels == labels).all()
    assert (head.matrix == matrix).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 30), st.integers(1, 20), st.floats(0.1, 1e4), st.integers(0, 99))
def test_a_left_out_residual_is_that_of_the_head_of_all_others(
    n: int, d: int, lam: float, seed: int
) -> None:
    features, head = client(n, d, seed)
    w = head.matrix.astype(np.float64)
    got = OwnExamples(features, K).left_out(w, lam)
    for i in range(n):
        others = features.select(np.delete(np.arange(n), i))
        v = OwnExamples(others, K).near(w, lam)
        want = np.eye(K)[features.labels[i]] - v @ features.x[i].astype(np.float64)
        np.testing.assert_allclose(got[i], want, rtol=1e-6, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 60), st.integers(2, 30), st.floats(0.01, 0.8), st.integers(0, 99))
def test_what_a_client_has_of_the_global_head_is_what_it_would_add_again(
    n: int, d: int, leverage: float, seed: int
) -> None:
    features, head = client(n, d, seed)
    w = head.matrix.astype(np.float64)
    examples = OwnExamples(features, K)
    start, penalty = examples.without_own(w, leverage)
    np.testing.assert_allclose(examples.near(start, penalty), w, rtol=1e-6, atol=1e-6)
    x = features.x.astype(np.float64)
    hat = x @ np.linalg.solve(x.T @ x + penalty * np.eye(d + 1), x.T)
    rank = np.linalg.matrix_rank(x)
    assert np.trace(hat) / n == pytest.approx(min(leverage, 0.9 * rank / n), rel=1e-3)


def test_a_head_of_unknown_origin_is_taken_as_it_is() -> None:
    features, head = client(10, 6, 4)
    w = head.matrix.astype(np.float64)
    start, penalty = OwnExamples(features, K).without_own(w, 0.0)
    assert start is w
    np.testing.assert_array_equal(OwnExamples(features, K).near(start, penalty), w)


def grouped(noise: float, n: int = 60) -> tuple[FeatureSet, np.ndarray]:
    """Examples whose class shows in one feature each, and the head that knows it."""
    rng = np.random.default_rng(5)
    labels = np.arange(n) % K
    q = np.rint(128 + 100 * np.eye(8)[labels] + rng.normal(0, noise, (n, 8)))
    affine = Affine(np.full(8, 0.01, np.float32), np.full(8, 128, np.float32))
    known = np.zeros((K, 9))
    known[:, :K] = np.eye(K)
    return FeatureSet(q.clip(0, 255).astype(np.uint8), labels, affine, "f"), known


def test_a_head_that_makes_fewer_mistakes_is_the_start() -> None:
    features, known = grouped(noise=40.0, n=6)
    examples = OwnExamples(features, K)
    choice = personal_choice(examples, Head.from_matrix(known), 0.0)
    alone = min(examples.alone(), key=lambda choice: choice.error)
    assert choice.wrong < alone.wrong
    np.testing.assert_array_equal(choice.start, known)


def test_of_heads_with_as_many_mistakes_the_one_close_to_the_global_head_is_taken() -> None:
    features, known = grouped(noise=3.0)
    examples = OwnExamples(features, K)
    choice = personal_choice(examples, Head.from_matrix(known), 0.0)
    alone = min(examples.alone(), key=lambda choice: choice.error)
    assert choice.wrong == alone.wrong == 0
    np.testing.assert_array_equal(choice.start, known)


def test_a_client_whose_classes_are_named_differently_keeps_to_itself() -> None:
    features, known = grouped(noise=40.0, n=12)
    renamed = Head.from_matrix(known[[1, 2, 3, 0]])
    examples = OwnExamples(features, K)
    choice = personal_choice(examples, renamed, 0.01)
    assert not choice.start.any()
    assert choice.shift == 0
    alone = min(examples.alone(), key=lambda choice: choice.error)
    np.testing.assert_array_equal(examples.head(choice).matrix, examples.head(alone).matrix)


def test_a_head_of_other_classes_names_does_no_harm_where_the_own_examples_suffice() -> None:
    features, known = grouped(noise=3.0)
    examples = OwnExamples(features, K)
    choice = personal_choice(examples, Head.from_matrix(known[[1, 2, 3, 0]] * 50), 0.01)
    right = (features.x @ examples.head(choice).matrix.T).argmax(1) == features.labels
    assert right.all()


def solved(x: np.ndarray, labels: np.ndarray, start: np.ndarray, lam: float) -> np.ndarray:
    left = x.T @ x + lam * np.eye(x.shape[1])
    return np.linalg.solve(left, (np.eye(K)[labels].T @ x + lam * start).T).T


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 25), st.integers(1, 12), st.floats(0.1, 1e4), st.integers(0, 99))
def test_the_shift_is_the_one_that_predicts_each_example_best_from_all_others(
    n: int, d: int, lam: float, seed: int
) -> None:
    features, head = client(n, d, seed)
    # Few classes, some of them often: else there is little to shift to.
    labels = np.random.default_rng(seed).choice(K, n, p=[0.6, 0.25, 0.15, 0])
    features = FeatureSet(features.q, labels, features.affine, "f")
    start, x = head.matrix.astype(np.float64), features.x.astype(np.float64)
    wrong = dict.fromkeys((0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 1.0), 0)
    for i in range(n):
        others = np.delete(np.arange(n), i)
        logits = solved(x[others], labels[others], start, lam) @ x[i]
        counts = np.bincount(labels[others], minlength=K)
        prior = (counts + 0.5 / K) / (n - 1 + 0.5)
        for shift in wrong:
            wrong[shift] += int((logits + shift * np.log(prior)).argmax() != labels[i])
    examples = OwnExamples(features, K)
    (judged,) = examples.judge(start, [lam])
    assert judged.wrong == wrong[0.0]
    got = examples.shifted(judged)
    assert got.wrong == wrong[got.shift] == min(wrong.values())
    steps = list(wrong)
    best = [steps.index(shift) for shift in steps if wrong[shift] == got.wrong]
    assert abs(steps.index(got.shift) - 3) == min(abs(i - 3) for i in best)


def test_the_shift_goes_into_the_bias_and_is_the_logarithm_of_the_classes_shares() -> None:
    features, head = client(10, 6, 8)
    labels = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 3])
    examples = OwnExamples(FeatureSet(features.q, labels, features.affine, "f"), K)
    (plain,) = examples.judge(head.matrix.astype(np.float64), [2.0])
    before, after = examples.head(plain), examples.head(replace(plain, shift=0.4))
    np.testing.assert_array_equal(after.weight, before.weight)
    shares = np.array([6.125, 3.125, 0.125, 1.125]) / 10.5  # half an example, evenly
    np.testing.assert_allclose(after.bias, before.bias + 0.4 * np.log(shares), rtol=1e-5)


def test_where_no_shift_is_better_than_another_it_is_a_small_one() -> None:
    features, known = grouped(noise=3.0)
    examples = OwnExamples(features, K)
    near, hopeless = (examples.judge(start, [np.inf])[0] for start in (known, -100 * known))
    assert (near.wrong, hopeless.wrong) == (0, len(features))
    assert examples.shifted(near).shift == examples.shifted(hopeless).shift == 0.1


def test_a_client_that_has_two_of_the_classes_is_no_longer_told_the_others() -> None:
    features, known = grouped(noise=30.0)
    vague = known.copy()
    vague[:, -1] = [0, 0, 0.6, 0.6]  # from others, who have the last two classes often
    own = features.select(np.flatnonzero(features.labels < 2)[:12])
    examples = OwnExamples(own, K)
    start = Head.from_matrix(vague)
    plain = examples.judge(start.matrix.astype(np.float64), [1e3])[0]
    shifted = examples.shifted(plain)
    assert shifted.wrong < plain.wrong
    right = (own.x @ examples.head(shifted).matrix.T).argmax(1) == own.labels
    assert right.sum() > ((own.x @ examples.head(plain).matrix.T).argmax(1) == own.labels).sum()


@pytest.mark.parametrize("n", [1, 2, 12])
def test_a_client_of_one_class_gets_a_head_that_leans_to_it_a_little(n: int) -> None:
    features, known = grouped(noise=3.0)
    own = features.select(np.flatnonzero(features.labels == 2)[:n])
    examples = OwnExamples(own, K)
    choice = personal_choice(examples, Head.from_matrix(known), 0.0)
    np.testing.assert_array_equal(choice.start, known)
    assert choice.shift == 0.1
    head, plain = examples.head(choice), examples.head(replace(choice, shift=0.0))
    gained = head.bias - plain.bias
    want = 0.1 * np.log((n + 0.125) / 0.125)
    np.testing.assert_allclose(gained[2] - gained[[0, 1, 3]], want, rtol=1e-5)
    assert ((features.x @ head.matrix.T).argmax(1) == 2)[features.labels == 2].all()


@pytest.mark.parametrize("label", range(K))
def test_one_example_says_nothing_for_a_head_of_its_own(label: int) -> None:
    affine = Affine(np.full(8, 0.01, np.float32), np.full(8, 128, np.float32))
    q = np.full((1, 8), 128, np.uint8)
    q[0, label] = 228
    known = np.zeros((K, 9))
    known[:, :K] = np.eye(K)
    examples = OwnExamples(FeatureSet(q, np.array([label]), affine, "f"), K)
    choice = personal_choice(examples, Head.from_matrix(known), 0.0)
    np.testing.assert_array_equal(choice.start, known)


@pytest.mark.parametrize("leverage", [0.0, 0.3])
def test_one_example_is_enough_to_choose(leverage: float) -> None:
    features, head = client(1, 6, 7)
    examples = OwnExamples(features, K)
    assert np.isfinite(examples.head(personal_choice(examples, head, leverage)).matrix).all()
