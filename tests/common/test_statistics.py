import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ReplyError
from common.fields import check_plausible
from common.plausible import Limits
from common.statistics import Statistics, exact_sum, feature_statistics, ridge, triangle_size
from common.types import Affine, FeatureSet


def make(n: int, d: int, k: int, seed: int) -> FeatureSet:
    rng = np.random.default_rng(seed)
    affine = Affine(
        rng.uniform(0.5, 2, d).astype(np.float32), rng.uniform(0, 200, d).astype(np.float32)
    )
    q = rng.integers(0, 256, (n, d), dtype=np.uint8)
    return FeatureSet(q, rng.integers(0, k, n), affine, "f")


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 700), st.integers(1, 20), st.integers(2, 5), st.integers(0, 99))
def test_statistics_are_exact_integers(n: int, d: int, k: int, seed: int) -> None:
    features = make(n, d, k, seed)
    q1 = np.concatenate([features.q, np.ones((n, 1), np.uint8)], axis=1).astype(np.int64)
    onehot = np.eye(k, dtype=np.int64)[features.labels]
    got = feature_statistics(features, k)
    assert got.gram.shape == (triangle_size(d + 1),)
    np.testing.assert_array_equal(got.gram, (q1.T @ q1)[np.triu_indices(d + 1)])
    np.testing.assert_array_equal(got.moments, onehot.T @ q1)
    assert got.num_examples == n


def test_full_scale_features_stay_exact() -> None:
    # 255 everywhere is where float32 sums would round first.
    n = 1000
    features = FeatureSet(
        np.full((n, 3), 255, np.uint8),
        np.zeros(n, np.int64),
        Affine(np.ones(3, np.float32), np.zeros(3, np.float32)),
        "f",
    )
    assert int(feature_statistics(features, 2).gram[0]) == 255 * 255 * n


def test_any_split_into_clients_gives_the_same_bits() -> None:
    features = make(300, 8, 3, 0)
    whole = feature_statistics(features, 3)
    parts = [
        feature_statistics(features.select(part), 3)
        for part in np.split(np.random.default_rng(1).permutation(300), [10, 11, 200])
    ]
    gram = sum(p.gram.astype(np.uint64) for p in parts)
    moments = sum(p.moments.astype(np.uint64) for p in parts)
    np.testing.assert_array_equal(gram, whole.gram)
    np.testing.assert_array_equal(moments, whole.moments)


def test_feature_space_statistics_match_those_of_x() -> None:
    features = make(400, 12, 4, 2)
    a, b = feature_statistics(features, 4).in_feature_space(features.affine)
    gain, center = features.affine.gain.astype(float), features.affine.center.astype(float)
    x = np.concatenate([(features.q - center) * gain, np.ones((400, 1))], axis=1)
    np.testing.assert_allclose(a, x.T @ x, rtol=1e-10, atol=1e-6)
    np.testing.assert_allclose(b, np.eye(4)[features.labels].T @ x, rtol=1e-10, atol=1e-6)


def test_ridge_equals_the_stacked_least_squares_solution() -> None:
    features = make(200, 10, 3, 3)
    a, b = feature_statistics(features, 3).in_feature_space(features.affine)
    x = features.x.astype(np.float64)
    lam = 2.5
    # ridge = least squares with sqrt(lam) I stacked below X
    stacked = np.concatenate([x, np.sqrt(lam) * np.eye(11)])
    target = np.concatenate([np.eye(3)[features.labels], np.zeros((11, 3))])
    expected = np.linalg.lstsq(stacked, target, rcond=None)[0].T
    np.testing.assert_allclose(ridge(a, b, lam), expected, rtol=1e-4, atol=1e-6)


def test_normalized_ridge_has_unit_rows_and_a_missing_class_stays_zero() -> None:
    features = make(50, 5, 3, 4)
    without = FeatureSet(features.q, features.labels % 2, features.affine, "f")
    a, b = feature_statistics(without, 3).in_feature_space(without.affine)
    norms = np.linalg.norm(ridge(a, b, 1.0, normalize=True), axis=1)
    np.testing.assert_allclose(norms, [1, 1, 0], atol=1e-6)


def test_small_sums_travel_in_four_bytes_and_large_ones_in_eight() -> None:
    def stats(n: int) -> Statistics:
        return feature_statistics(
            FeatureSet(
                np.full((n, 1), 255, np.uint8),
                np.zeros(n, np.int64),
                Affine(np.ones(1, np.float32), np.zeros(1, np.float32)),
                "f",
            ),
            2,
        )

    assert stats(66_051).gram.dtype == np.uint32
    assert stats(66_052).gram.dtype == np.uint64
    assert int(stats(66_052).gram[0]) == 255 * 255 * 66_052


@pytest.mark.parametrize("bad", [np.zeros((2, 3), np.float32), np.zeros(3, np.uint8)])
def test_feature_set_refuses_other_dtypes_and_shapes(bad: np.ndarray) -> None:
    with pytest.raises(Exception, match="expected uint8"):
        FeatureSet(bad, np.zeros(2, np.int64), Affine(np.ones(3), np.zeros(3)), "f")


def stated(n: int = 20, d: int = 6, k: int = 3, seed: int = 3) -> dict[str, np.ndarray]:
    sums = feature_statistics(make(n, d, k, seed), k)
    return {"gram": sums.gram.astype(np.uint64), "moments": sums.moments.astype(np.uint64)}


def product(sums: dict[str, np.ndarray], i: int, j: int) -> tuple[int, ...]:
    """Where the sum of the products of features i <= j is in the triangle."""
    rows, columns = np.triu_indices(sums["moments"].shape[1])
    return (int(np.flatnonzero((rows == i) & (columns == j))[0]),)


def wraps(sums: dict[str, np.ndarray]) -> None:
    sums["moments"][:2, -1] += np.uint64(2**63)  # 2^64 in all, and so 0


def too_bright(sums: dict[str, np.ndarray]) -> None:
    sums["moments"][0, 2] = 255 * sums["moments"][0, -1] + 1


def of_nobody(sums: dict[str, np.ndarray]) -> None:
    sums["moments"][1, -1] += sums["moments"][0, -1]
    sums["moments"][0, -1] = 0


def other_sums(sums: dict[str, np.ndarray]) -> None:
    sums["moments"][0, 2] -= np.uint64(1)


def dark(sums: dict[str, np.ndarray]) -> None:
    sums["gram"][product(sums, 1, 1)] = sums["moments"][:, 1].sum() - 1


def bright(sums: dict[str, np.ndarray]) -> None:
    sums["gram"][product(sums, 1, 1)] = 255 * sums["moments"][:, 1].sum() + 1


def correlated(sums: dict[str, np.ndarray]) -> None:
    first, second = (int(sums["gram"][product(sums, i, i)]) for i in (1, 3))
    sums["gram"][product(sums, 1, 3)] = math.isqrt(first * second) + 1  # by Cauchy and Schwarz


def indefinite(sums: dict[str, np.ndarray]) -> None:
    # Each two of three features alike, one pair of them as if it had nothing in common.
    for i, j in ((0, 1), (1, 2), (0, 2)):
        squares = int(sums["gram"][product(sums, i, i)]), int(sums["gram"][product(sums, j, j)])
        sums["gram"][product(sums, i, j)] = math.isqrt(squares[0] * squares[1]) if j - i < 2 else 0


def no_spread(sums: dict[str, np.ndarray]) -> None:
    # As much as one constant feature gives, where classes differ: a variance below 0 within them.
    total, n = int(sums["moments"][:, 1].sum()), int(sums["moments"][:, -1].sum())
    sums["gram"][product(sums, 1, 1)] = -(-(total**2) // n)


IMPOSSIBLE = {
    "a Gram of 2^60": (lambda s: s["gram"].fill(2**60), f"gram holds {2**60}, expected at most"),
    "moments of 2^63": (lambda s: s["moments"].fill(2**63), f"moments holds {2**63}, expected at"),
    "counts that wrap around": (wraps, "moments holds 92233720368547758"),
    "another count": (lambda s: s["moments"].__setitem__((0, -1), 0), "examples, not 20"),
    "more than 255 an example": (too_bright, "above 255 times its examples"),
    "sums of no example": (of_nobody, "above 255 times its examples"),
    "sums that differ": (other_sums, "gram's last column is not the sum of the moments"),
    "squares below the sum": (dark, "gram's diagonal does not fit"),
    "squares above 255 times it": (bright, "gram's diagonal does not fit"),
    "a product above Cauchy's bound": (correlated, "not positive semidefinite"),
    "an indefinite Gram": (indefinite, "not positive semidefinite"),
    "less than no spread": (no_spread, "not positive semidefinite"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_statistics_that_no_features_can_have_are_refused(case: str) -> None:
    change, words = IMPOSSIBLE[case]
    sums = stated()
    check_plausible(sums, Limits(20, 1.0))
    change(sums)
    with pytest.raises(ReplyError, match=re.escape(words)):
        check_plausible(sums, Limits(20, 1.0))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 60), st.integers(1, 20), st.integers(2, 5), st.integers(0, 9999),
    st.sampled_from(("any", "sparse", "constant", "alike")),
)  # fmt: skip
def test_statistics_of_features_are_never_refused(
    n: int, d: int, k: int, seed: int, kind: str
) -> None:
    features, rng = make(n, d, k, seed), np.random.default_rng(seed)
    q = {
        "any": features.q,
        "sparse": features.q * (rng.random((n, d)) < 0.1),
        "constant": np.broadcast_to(features.q[:1], (n, d)),  # of no rank within a class
        "alike": np.broadcast_to(features.q[:, :1], (n, d)),
    }[kind]
    sums = feature_statistics(
        FeatureSet(q.astype(np.uint8), features.labels, features.affine, "f"), k
    )
    check_plausible({"gram": sums.gram, "moments": sums.moments}, Limits(n, 1.0))
    check_plausible({"moments": sums.moments}, Limits(n, 1.0))


def test_sums_that_leave_64_bits_are_an_error_and_never_begin_again_at_zero() -> None:
    half = np.full((1, 3), 2**63, np.uint64)
    once = exact_sum(np.zeros(3, np.uint64), half)
    assert once.tolist() == [2**63] * 3
    for rows in (half, np.array([[0, 0, 2**63]], np.uint64)):
        with pytest.raises(OverflowError, match=r"2\^64 or more"):
            exact_sum(once, rows)


def test_numbers_that_updates_are_divided_by_are_bounded() -> None:
    good = {"effective_steps": np.array([12.0], np.float32)}
    limits = Limits(20, 12.0)
    check_plausible(good, limits)
    for value, words in ((12.1, "12.1, expected at most 12"), (0.0, "0, expected more than 0")):
        with pytest.raises(ReplyError, match=words):
            check_plausible({"effective_steps": np.array([value], np.float32)}, limits)
    with pytest.raises(ReplyError, match="fair_scale is -1, expected more than 0"):
        check_plausible({"fair_scale": np.array([-1.0], np.float32)}, limits)
