"""Sums with a codec's noise still give a sound ridge; exact sums are left as they are."""

from __future__ import annotations

import numpy as np

from common.codecs import find_codec
from common.ridge import auto_ridge
from common.scatter import is_definite, scaled_scatter, sound_sums
from common.statistics import Statistics, feature_statistics
from common.types import Affine, FeatureSet, FloatArray, Layout

D, K, N = 100, 5, 400
AFFINE = Affine(np.full(D, 0.02, np.float32), np.full(D, 128, np.float32))
CODEC = find_codec("gram-int8")


def examples(n: int = 2 * N) -> tuple[np.ndarray, np.ndarray]:
    """Correlated uint8 features, as a network's are, and labels; 1 in 20 says which class."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((D, D)))[0]
    mix = (rng.standard_normal((D, D)) * np.exp(-np.arange(D) / 12)[:, None]) @ basis
    labels = rng.integers(0, K, n)
    x = rng.standard_normal((n, D))
    x[:, :K] += 1.2 * np.eye(K)[labels]
    noise = 0.8 * rng.standard_normal((n, D))
    return np.clip(128 + 6 * x @ mix + noise, 0, 255).astype(np.uint8), labels


def summed(num_clients: int, *, noisy: bool) -> Statistics:
    q, labels = examples()
    gram, moments = np.zeros(5151, np.uint64), np.zeros((K, D + 1), np.uint64)
    for i, part in enumerate(np.array_split(np.arange(N), num_clients)):
        sums = feature_statistics(FeatureSet(q[part], labels[part], AFFINE, "f"), K)
        if noisy:
            layout = Layout(sums.gram.shape, "u")
            gram += CODEC.decode(CODEC.encode(sums.gram, i), layout, i).astype(np.uint64)
        else:
            gram += sums.gram
        moments += sums.moments
    return Statistics(gram, moments)


def correct(matrix: FloatArray) -> float:
    """The share of further examples that a head has right."""
    q, labels = examples()
    x = np.concatenate([(q[N:] - 128.0) * 0.02, np.ones((N, 1))], axis=1)
    return float(((x @ matrix.T).argmax(axis=1) == labels[N:]).mean())


def test_exact_sums_keep_their_bits() -> None:
    sums = summed(4, noisy=False)
    for got, want in zip(sound_sums(sums, AFFINE), sums.in_feature_space(AFFINE), strict=True):
        assert got.tobytes() == want.tobytes()


def test_cross_validation_does_not_take_noise_for_a_perfect_fit() -> None:
    exact = auto_ridge(*sound_sums(summed(1, noisy=False), AFFINE), N)
    most, ruined = correct(exact.matrix), 0
    for num_clients in (1, 2, 3, 5, 8, 13, 20, 30, 40):
        sums = summed(num_clients, noisy=True)
        got = auto_ridge(*sound_sums(sums, AFFINE), N)
        assert exact.lam / 2 < got.lam < 2 * exact.lam
        assert correct(got.matrix) > most - 0.02
        # Without mending it depends on where the small eigenvalues fall.
        ruined += correct(auto_ridge(*sums.in_feature_space(AFFINE), N).matrix) < most - 0.1
    assert ruined


def test_no_direction_keeps_less_than_its_class_means_add() -> None:
    a, b = sound_sums(summed(1, noisy=True), AFFINE)
    between = (b.T / b[:, -1]) @ b
    values = np.linalg.eigvalsh(a - between)
    assert values[0] > -1e-9 * values[-1]
    np.testing.assert_array_equal(a[-1], summed(1, noisy=False).in_feature_space(AFFINE)[0][-1])


def test_the_noise_that_is_mended_is_there() -> None:
    for noisy in (False, True):
        sums = summed(1, noisy=noisy)
        upper = np.zeros((D + 1, D + 1), np.uint64)
        upper[np.triu_indices(D + 1)] = sums.gram
        assert is_definite(scaled_scatter(upper, sums.moments)[0]) == (not noisy)


def test_one_example_and_constant_features_are_left_as_they_are() -> None:
    for q in (np.full((1, D), 7, np.uint8), np.full((9, D), 255, np.uint8)):
        sums = feature_statistics(FeatureSet(q, np.zeros(len(q), np.int64), AFFINE, "f"), K)
        for got, want in zip(sound_sums(sums, AFFINE), sums.in_feature_space(AFFINE), strict=True):
            assert got.tobytes() == want.tobytes()
