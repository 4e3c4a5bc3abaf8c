"""Cross-validated ridge heads, against the same computed one head at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.types import FloatArray, IntArray
from simulations.probe.crossval import FOLDS, cross_validate, learning_curve, split_folds


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


def test_each_fold_is_predicted_by_the_head_of_the_others() -> None:
    x, labels = examples()
    fold = split_folds(labels, 0)
    found = cross_validate(x, labels, fold, [3.0])
    training = []
    for f in range(FOLDS):
        train, asked = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
        assert np.array_equal(found.predictions[asked], by_hand(x, labels, train, asked, 3.0))
        training.append((by_hand(x, labels, train, train, 3.0) == labels[train]).sum())
    assert found.training_accuracy == pytest.approx(sum(training) / (4 * len(labels)))
    assert found.accuracy(labels) == (found.predictions == labels).mean()


def test_a_penalty_is_chosen_without_the_fold_it_predicts() -> None:
    x, labels = examples()
    fold = split_folds(labels, 0)
    penalties = [1e-3, 1.0, 30.0, 1e4]
    found = cross_validate(x, labels, fold, penalties)
    for f in range(FOLDS):
        g = (f + 1) % FOLDS
        train, inner = np.flatnonzero((fold != f) & (fold != g)), np.flatnonzero(fold == g)
        hits = [(by_hand(x, labels, train, inner, p) == labels[inner]).sum() for p in penalties]
        assert found.penalties[f] == penalties[int(np.argmax(hits))]
    # Other labels in the first fold change the choice for it in nothing.
    other = labels.copy()
    other[fold == 0] = (other[fold == 0] + 1) % 3
    assert cross_validate(x, other, fold, penalties).penalties[0] == found.penalties[0]


def test_a_learning_curve_ends_at_the_cross_validated_accuracy() -> None:
    x, labels = examples()
    fold = split_folds(labels, 0)
    penalties = (0.1, 1.0, 2.0, 5.0, 9.0)
    curve = learning_curve(x, labels, fold, penalties, [1, 4, len(labels)])
    for f in range(FOLDS):
        train, asked = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
        few = np.concatenate([train[labels[train] == k][:4] for k in range(3)])
        for row, subset in ((1, few), (2, train)):
            hits = by_hand(x, labels, subset, asked, penalties[f]) == labels[asked]
            assert curve[row, f] == pytest.approx(hits.mean())
