"""Cross-validated ridge heads, against the same computed one head at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.types import FloatArray, IntArray
from simulations.probe.crossval import FOLDS, cross_validate, learning_curve, sample, split_folds


def examples(n: int = 90, d: int = 7, classes: int = 3) -> tuple[FloatArray, IntArray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, n)
    means = rng.normal(size=(classes, d))
    return (means[labels] + rng.normal(size=(n, d))).astype(np.float32), labels


def by_hand(
    x: FloatArray, labels: IntArray, train: IntArray, asked: IntArray, penalty: float
) -> IntArray:
    design = np.column_stack([x.astype(np.float64), np.ones(len(x))])
    rows = np.vstack([design[train], np.sqrt(penalty) * np.eye(design.shape[1])])
    wanted = np.zeros((len(rows), int(labels.max()) + 1))
    wanted[np.arange(len(train)), labels[train]] = 1
    head = np.linalg.lstsq(rows, wanted)[0]
    return (design[asked] @ head).argmax(axis=1)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(0, 5))
def test_folds_share_out_every_class_evenly(counts: list[int], seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    fold = split_folds(labels, seed)
    for k, count in enumerate(counts):
        sizes = np.bincount(fold[labels == k], minlength=FOLDS)
        assert set(sizes.tolist()) <= {count // FOLDS, -(-count // FOLDS)}


def test_a_sample_leaves_every_class_what_folds_need() -> None:
    sizes = np.array([*[10] * 500, 4, 3000])  # many small classes, a rare and a common one
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    chosen = sample(labels, 2000, 0, FOLDS)
    counts = np.bincount(labels[chosen])
    assert counts[:500].tolist() == [FOLDS] * 500
    assert (counts[500], len(set(chosen.tolist()))) == (4, len(chosen))
    assert abs(counts[501] - 2000 * 3000 / len(labels)) <= 1
    assert sample(labels, 10**6, 0, FOLDS).tolist() == list(range(len(labels)))
    # Where every class has enough anyway, nothing is added.
    even = np.repeat(np.arange(3), 100)
    assert sample(even, 30, 0, FOLDS).tolist() == sample(even, 30, 0).tolist()


def gcv_by_hand(x: FloatArray, labels: IntArray) -> float:
    """The penalty with the smallest n |Y - H Y|^2 / (n - tr H)^2, with the hat matrix H.

    tr H, the number of effective parameters, is at most 70 % of n.
    """
    design = np.column_stack([x.astype(np.float64), np.ones(len(x))])
    wanted = np.eye(int(labels.max()) + 1)[labels]
    scores = {}
    for penalty in 10.0 ** (np.arange(-10, 51) / 10):
        inverse = np.linalg.inv(design.T @ design + penalty * np.eye(design.shape[1]))
        hat = design @ inverse @ design.T
        if np.trace(hat) > 0.7 * len(x):
            continue
        scores[penalty] = np.square(wanted - hat @ wanted).sum() / (len(x) - np.trace(hat)) ** 2
    return float(min(scores, key=lambda penalty: scores[penalty]))


@pytest.mark.parametrize("width", [7, 120], ids=["more examples", "more features"])
def test_each_fold_is_predicted_by_the_head_of_the_others(width: int) -> None:
    x, labels = examples(d=width)
    fold = split_folds(labels, 0)
    found = cross_validate(x, labels, fold)
    training = []
    for f in range(FOLDS):
        train, asked = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
        penalty = gcv_by_hand(x[train], labels[train])
        assert found.penalties[f] == pytest.approx(penalty)
        expected = by_hand(x, labels, train, asked, penalty)
        assert np.array_equal(found.predictions[asked], expected)
        training.append((by_hand(x, labels, train, train, penalty) == labels[train]).sum())
    assert found.training_accuracy == pytest.approx(sum(training) / (4 * len(labels)))
    assert found.accuracy(labels) == (found.predictions == labels).mean()


def test_a_given_penalty_is_kept() -> None:
    x, labels = examples()
    assert cross_validate(x, labels, split_folds(labels, 0), 3.0).penalties == (3.0,) * FOLDS


def test_a_learning_curve_ends_at_the_cross_validated_accuracy() -> None:
    x, labels = examples()
    fold = split_folds(labels, 0)
    limits = np.array([[1, 1, 1], [4, 2, 4], [90, 90, 90]])
    right = learning_curve(x, labels, fold, limits)
    assert np.array_equal(right[-1], cross_validate(x, labels, fold).predictions == labels)
    for f in range(FOLDS):
        train, asked = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
        few = np.concatenate([train[labels[train] == k][: limits[1, k]] for k in range(3)])
        head = by_hand(x, labels, few, asked, gcv_by_hand(x[few], labels[few]))
        assert np.array_equal(right[1, asked], head == labels[asked])
