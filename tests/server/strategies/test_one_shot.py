"""Heads from one release against what numpy makes of all clients' examples in one place."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from client.sgd import train_head
from common.errors import RunError
from common.privacy.integers import RESOLUTION, clipped
from common.rates import mean_norm
from common.softmax import rows_of_norm
from common.types import Affine, Head, IntArray, LocalTraining, UpdateBatch
from server.strategies.averaging import Stateless
from server.strategies.one_shot import Known, one_shot_lda, one_shot_ridge, second_moment
from server.strategy import Metrics, RoundContext, Strategy, with_metrics

CLIENTS, EACH, CLASSES, WIDTH = 200, 5, 4, 12
AFFINE = Affine(np.ones(WIDTH, np.float32), np.zeros(WIDTH, np.float32))
CONTEXT = RoundContext(1, CLIENTS, CLIENTS, 1.0, AFFINE, zero_point=0, seed=0)


def examples(count: int, seed: int) -> tuple[npt.NDArray[np.float32], IntArray]:
    """Features with a bias, in directions of very different spread, and labels."""
    rng = np.random.default_rng(seed)
    means = np.random.default_rng(99).normal(0, 0.5, (CLASSES, WIDTH))
    labels = rng.integers(0, CLASSES, count)
    spread = np.linspace(3, 0.3, WIDTH)
    x = (means[labels] + rng.normal(0, 1, (count, WIDTH))) * spread
    return np.pad(x, ((0, 0), (0, 1)), constant_values=1).astype(np.float32), labels


def updates_of(
    x: npt.NDArray[np.float32], labels: IntArray, norm: float
) -> npt.NDArray[np.float32]:
    """What each client's one step from the head of zeros gives, float32 (n, K, d + 1)."""
    deltas = []
    for own, told in zip(np.split(x, CLIENTS), np.split(labels, CLIENTS), strict=True):
        result = train_head(
            rows_of_norm(torch.from_numpy(own), norm),
            torch.from_numpy(told),
            torch.zeros(CLASSES, WIDTH + 1),
            LocalTraining(lr=1 / norm**2, batch_size=EACH),
            [np.arange(EACH)],
        )
        deltas.append(result.delta.numpy())
    return np.stack(deltas)


def solved(
    strategy: Strategy[Stateless], mean: npt.NDArray[np.floating]
) -> tuple[npt.NDArray[np.float32], Metrics]:
    zeros = Head.zeros(CLASSES, WIDTH)
    batch = UpdateBatch(((0,),), np.ones(1, np.int64), np.ones(1), {"delta": mean[None]})
    given = strategy.aggregate(strategy.init(zeros), zeros, batch, CONTEXT)
    _, head, metrics = with_metrics(given, strategy.name)
    return head.matrix, metrics


X, LABELS = examples(CLIENTS * EACH, 1)
NORM = mean_norm(X)
Z = X[:, :-1].astype(np.float64)
Z /= np.linalg.norm(Z, axis=1, keepdims=True)
ONE_HOT = np.eye(CLASSES)[LABELS]


def known(noise: float = 0.0, calibration: npt.NDArray[np.float32] = X) -> Known:
    return Known(second_moment(calibration[:, :-1]), NORM, CLIENTS * EACH, noise)


def parallel(found: npt.NDArray[np.floating], expected: npt.NDArray[np.floating]) -> None:
    """Assert that a head is another one times a positive number."""
    factor = float((found * expected).sum() / np.square(expected).sum())
    assert factor > 0
    np.testing.assert_allclose(found, factor * expected, rtol=1e-4, atol=1e-4 * np.abs(found).max())


def test_updates_from_the_head_of_zeros_make_the_ridge_head_of_all_examples() -> None:
    lam = 40.0
    features = NORM * Z
    gram = features.T @ features + lam * np.eye(WIDTH)
    expected = np.linalg.solve(gram, features.T @ (ONE_HOT - 1 / CLASSES)).T
    matrix, metrics = solved(
        one_shot_ridge(known(), lam=lam), updates_of(X, LABELS, NORM).mean(axis=0)
    )
    parallel(matrix[:, :-1], expected)
    assert not matrix[:, -1].any()
    assert metrics["ridge-lambda"] == pytest.approx(lam)


def test_a_clip_of_all_alike_and_a_step_change_nothing() -> None:
    mean = updates_of(X, LABELS, NORM).mean(axis=0)
    for strategy in (one_shot_ridge(known(0.01)), one_shot_lda(known(0.01))):
        matrix = solved(strategy, mean)[0]
        np.testing.assert_allclose(solved(strategy, mean * 1e-3)[0], matrix, rtol=1e-5)
        logits = NORM * Z @ matrix[:, :-1].T
        assert np.square(logits).mean() == pytest.approx(1, rel=1e-5)


def test_the_discriminant_is_that_of_the_shrunk_second_moment() -> None:
    mean = updates_of(X, LABELS, NORM).mean(axis=0)
    moment = Z.T @ Z / len(Z)
    for share in (0.2, 1.0):
        shrunk = (1 - share) * moment + share * np.trace(moment) / WIDTH * np.eye(WIDTH)
        expected = np.linalg.solve(shrunk, Z.T @ (ONE_HOT - 1 / CLASSES)).T
        parallel(solved(one_shot_lda(known(), shrinkage=share), mean)[0][:, :-1], expected)


def test_by_themselves_both_shrink_alike_and_more_if_there_is_more_noise() -> None:
    mean = updates_of(X, LABELS, NORM).mean(axis=0)
    told = []
    for noise in (0.0, 0.05, 0.5):
        ridge, metrics = solved(one_shot_ridge(known(noise)), mean)
        np.testing.assert_allclose(solved(one_shot_lda(known(noise)), mean)[0], ridge, rtol=1e-4)
        told.append(metrics["ridge-lambda"])
    assert told[0] < told[1] < told[2]


def test_rows_of_one_norm_if_asked_for() -> None:
    strategy = one_shot_ridge(known(0.01), normalize=True)
    matrix = solved(strategy, updates_of(X, LABELS, NORM).mean(axis=0))[0]
    lengths = np.linalg.norm(matrix, axis=1)
    np.testing.assert_allclose(lengths, lengths[0], rtol=1e-5)


def test_the_penalty_by_rule_is_as_good_as_others_on_clipped_noisy_sums() -> None:
    test, truth = examples(4000, 2)
    calibration, _ = examples(100, 3)
    clip, multiplier = 0.25 / np.sqrt(EACH) / NORM, 6.0
    updates = updates_of(X, LABELS, NORM)
    total = sum(clipped(update, clip) for update in updates) * (clip / RESOLUTION)
    public = known(multiplier / CLIENTS, calibration)

    def right(lam: float | None, seed: int) -> float:
        noise = np.random.default_rng(seed).normal(0, multiplier * clip, total.shape)
        noise[:, -1] = 0
        strategy = one_shot_ridge(public) if lam is None else one_shot_ridge(public, lam=lam)
        matrix = solved(strategy, (total + noise) / CLIENTS)[0]
        return float(((test @ matrix.T).argmax(axis=1) == truth).mean())

    by_rule, least, most = (
        np.mean([right(lam, seed) for seed in range(20)])
        for lam in (None, 1e-6 * CLIENTS * EACH * NORM**2, 10 * CLIENTS * EACH * NORM**2)
    )
    assert by_rule > least + 0.02
    assert by_rule > most - 0.01


def test_features_of_zeros_have_no_direction() -> None:
    rows = np.array([[0.0, 0.0], [3.0, 4.0]])
    np.testing.assert_allclose(second_moment(rows), np.array([[9, 12], [12, 16]]) / 50)


def test_another_head_than_zeros_is_refused() -> None:
    other = Head(np.ones((CLASSES, WIDTH), np.float32), np.zeros(CLASSES, np.float32))
    batch = UpdateBatch((), np.ones(0, np.int64), np.ones(0), {"delta": X[:0]})
    strategy = one_shot_ridge(known())
    with pytest.raises(RunError, match="one-shot privacy starts from the head of zeros"):
        strategy.aggregate(strategy.init(other), other, batch, CONTEXT)
