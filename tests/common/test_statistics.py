import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ReplyError
from common.statistics import Statistics, feature_statistics, ridge, triangle_size
from common.types import Affine, FeatureSet
from common.validate import check_counts, check_scales


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


def test_sums_that_so_many_examples_cannot_give_are_refused() -> None:
    sums = feature_statistics(make(20, 6, 3, 3), 3)
    fields = {"gram": sums.gram, "moments": sums.moments}
    check_counts(fields, 20)
    for name, largest in (("gram", 20 * 255**2), ("moments", 20 * 255)):
        for value in (largest + 1, 2**63):
            bad = fields[name].astype(np.uint64)
            bad.flat[0] = value
            with pytest.raises(ReplyError, match=f"{name} holds {value}, too much for 20 examples"):
                check_counts({**fields, name: bad}, 20)


def test_numbers_that_updates_are_divided_by_are_bounded() -> None:
    good = {"effective_steps": np.array([12.0], np.float32)}
    check_scales(good, 12.0)
    for value, words in ((12.1, "12.1, expected at most 12"), (0.0, "0, expected more than 0")):
        with pytest.raises(ReplyError, match=words):
            check_scales({"effective_steps": np.array([value], np.float32)}, 12.0)
    with pytest.raises(ReplyError, match="fair_scale is -1, expected more than 0"):
        check_scales({"fair_scale": np.array([-1.0], np.float32)}, 12.0)
