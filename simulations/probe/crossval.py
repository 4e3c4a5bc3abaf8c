"""Ridge heads in cross-validation, the measure for comparing backbones and data sets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.progress import track
from common.ridge import auto_ridge
from common.seeding import Purpose, permutation
from common.statistics import ridge
from common.types import FloatArray, IntArray

__all__ = [
    "FOLDS",
    "CrossValidated",
    "RidgeHead",
    "cross_validate",
    "learning_curve",
    "ridge_head",
    "sample",
    "split_folds",
]

FOLDS = 5
_BLOCK = 4096  # bounds the float64 copy of the features

_Array = npt.NDArray[np.float64]
_Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class RidgeHead:
    """A linear head.

    Attributes:
        matrix: float64 (K, d + 1), weight and bias.
        penalty: the ridge penalty that was chosen.
    """

    matrix: _Array
    penalty: float

    def predict(self, x: FloatArray) -> IntArray:
        """Best class of each row."""
        blocks = [(design @ self.matrix.T).argmax(axis=1) for _, design in _blocks(x)]
        return np.concatenate(blocks) if blocks else np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class CrossValidated:
    """Predictions of heads on examples that they were not trained on.

    Attributes:
        predictions: int64 (n,).
        penalties: the penalty of each fold's head.
        training_accuracy: accuracy on a head's own training examples, mean over the folds.
    """

    predictions: IntArray
    penalties: tuple[float, ...]
    training_accuracy: float

    def accuracy(self, labels: IntArray) -> float:
        """Share of correct predictions, in [0, 1]."""
        return float((self.predictions == labels).mean())


def sample(labels: IntArray, count: int, seed: int, least: int = 0) -> IntArray:
    """Positions of about ``count`` examples, ascending; each class keeps its share.

    There are at most ``count``, but for classes whose share is below ``least``: these keep so many,
    or all that they have.
    """
    order = permutation(len(labels), seed, Purpose.FOLDS)
    by_class = order[np.argsort(labels[order], kind="stable")]
    chosen = np.zeros(len(labels), np.bool_)
    chosen[np.linspace(0, len(labels) - 1, min(len(labels), count)).astype(np.int64)] = True
    own = labels[by_class]
    scarce = np.bincount(own[chosen], minlength=len(np.bincount(own)))[own] < least
    first = np.arange(len(own)) - np.searchsorted(own, own) < least
    return np.sort(by_class[np.where(scarce, first, chosen)])


def split_folds(labels: IntArray, seed: int) -> IntArray:
    """Each example's fold, int64 (n,) in [0, FOLDS); every class is spread evenly over folds."""
    order = permutation(len(labels), seed, Purpose.FOLDS)
    by_class = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), np.int64)
    fold[by_class] = np.arange(len(labels)) % FOLDS
    return fold


def ridge_head(
    x: FloatArray, labels: IntArray, num_classes: int, penalty: float | None = None
) -> RidgeHead:
    """Ridge regression onto one-hot labels, as ``fed3r`` solves it.

    Args:
        x: float32 (n, d).
        labels: int64 (n,), in [0, num_classes).
        num_classes: K.
        penalty: lambda, above 0; None: it is chosen as in a run, see ``common.ridge``.
    """
    wanted = np.eye(num_classes)[labels]
    n, width = len(x), x.shape[1] + 1
    if n < width:  # few examples span few directions: in those the problem is a smaller one
        basis, rows = np.linalg.qr(_with_ones(x).T)
        inner = _solved(rows @ rows.T, wanted.T @ rows.T, n, penalty)
        return RidgeHead(inner.matrix @ basis.T, inner.penalty)
    a, b = np.zeros((width, width)), np.zeros((num_classes, width))
    for part, design in _blocks(x):
        a += design.T @ design
        b += wanted[part].T @ design
    return _solved(a, b, n, penalty)


def _solved(a: _Array, b: _Array, n: int, penalty: float | None) -> RidgeHead:
    if penalty is not None:
        return RidgeHead(ridge(a, b, penalty), penalty)
    solution = auto_ridge(a, b, n)
    return RidgeHead(solution.matrix, solution.lam)


def cross_validate(
    x: FloatArray, labels: IntArray, fold: IntArray, penalty: float | None = None
) -> CrossValidated:
    """Predict each fold with a ridge head trained on all other folds.

    With the same folds, results on other features of the same examples can be compared example by
    example.

    Args:
        x: float32 (n, d).
        labels: int64 (n,), from 0.
        fold: from :func:`split_folds`.
        penalty: as for :func:`ridge_head`.
    """
    k = int(labels.max()) + 1
    predictions = np.empty(len(labels), np.int64)
    chosen, correct = [], 0
    for f in track(range(FOLDS), "cross-validating", FOLDS):
        rest = fold != f
        head = ridge_head(x[rest], labels[rest], k, penalty)
        everywhere = head.predict(x)
        predictions[fold == f] = everywhere[fold == f]
        correct += int((everywhere == labels)[rest].sum())
        chosen.append(head.penalty)
    return CrossValidated(predictions, tuple(chosen), correct / ((FOLDS - 1) * len(labels)))


def learning_curve(x: FloatArray, labels: IntArray, fold: IntArray, limits: IntArray) -> _Flags:
    """Which examples heads get right that saw a limited number of examples of each class.

    Args:
        x: float32 (n, d).
        labels: int64 (n,), from 0.
        fold: from :func:`split_folds`.
        limits: int64 (L, K), largest number of training examples of each class. The examples of a
            smaller number are among those of a larger one.

    Returns:
        bool (L, n), each example by the head of the other folds.
    """
    k = limits.shape[1]
    right = np.empty((len(limits), len(labels)), np.bool_)
    for f in track(range(FOLDS), "learning from fewer examples", FOLDS):
        held_out = fold == f
        rank = _rank_in_class(labels, ~held_out)
        for row, limit in enumerate(limits):
            few = (rank >= 0) & (rank < limit[labels])
            head = ridge_head(x[few], labels[few], k)
            right[row, held_out] = head.predict(x[held_out]) == labels[held_out]
    return right


def _rank_in_class(labels: IntArray, usable: _Flags) -> IntArray:
    """Rank of each usable example within its class, in order; -1 for the others."""
    rank = np.full(len(labels), -1)
    for k in np.unique(labels):
        own = np.flatnonzero(usable & (labels == k))
        rank[own] = np.arange(len(own))
    return rank


def _blocks(x: FloatArray) -> Iterator[tuple[slice, _Array]]:
    """Rows of [x 1] in float64, one block at a time."""
    for start in range(0, len(x), _BLOCK):
        rows = slice(start, start + _BLOCK)
        yield rows, _with_ones(x[rows])


def _with_ones(x: FloatArray) -> _Array:
    return np.concatenate([x, np.ones((len(x), 1))], axis=1, dtype=np.float64)
