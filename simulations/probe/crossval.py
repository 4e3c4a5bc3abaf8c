"""Ridge heads in cross-validation, the measure for comparing backbones and data sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.progress import track
from common.seeding import Purpose, permutation
from common.statistics import ridge
from common.types import FloatArray, IntArray

__all__ = [
    "FOLDS",
    "CrossValidated",
    "cross_validate",
    "learning_curve",
    "sample",
    "split_folds",
]

FOLDS = 5
_BLOCK = 4096  # bounds the float64 copy of the features

_Array = npt.NDArray[np.float64]


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


def sample(labels: IntArray, count: int, seed: int) -> IntArray:
    """Positions of at most ``count`` examples, ascending; each class keeps its share."""
    order = permutation(len(labels), seed, Purpose.FOLDS)
    by_class = order[np.argsort(labels[order], kind="stable")]
    places = np.linspace(0, len(labels) - 1, min(len(labels), count)).astype(np.int64)
    return np.sort(by_class[places])


def split_folds(labels: IntArray, seed: int) -> IntArray:
    """Each example's fold, int64 (n,) in [0, FOLDS); every class is spread evenly over folds."""
    order = permutation(len(labels), seed, Purpose.FOLDS)
    by_class = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), np.int64)
    fold[by_class] = np.arange(len(labels)) % FOLDS
    return fold


def cross_validate(
    x: FloatArray, labels: IntArray, fold: IntArray, penalties: Sequence[float]
) -> CrossValidated:
    """Predict each fold with a ridge head trained on all other folds.

    For each fold, the penalty is chosen that does best on the next fold after training on the
    remaining ones, so the predicted fold has no part in the choice. With the same folds, results on
    other features of the same examples can be compared example by example.

    Args:
        x: float32 (n, d).
        labels: int64 (n,), from 0.
        fold: from :func:`split_folds`.
        penalties: each > 0; ties go to the first.
    """
    k = int(labels.max()) + 1
    sums = [_sums(x[fold == f], labels[fold == f], k) for f in range(FOLDS)]
    total = _added(sums)
    predictions = np.empty(len(labels), np.int64)
    chosen, correct = [], 0
    for f in track(range(FOLDS), "cross-validating", FOLDS):
        rest = _without(total, sums[f])
        penalty = penalties[0]
        if len(penalties) > 1:
            g = (f + 1) % FOLDS
            inner = _without(rest, sums[g])
            hits = [
                (_predict(x[fold == g], ridge(*inner, lam)) == labels[fold == g]).sum()
                for lam in penalties
            ]
            penalty = penalties[int(np.argmax(hits))]
        everywhere = _predict(x, ridge(*rest, penalty))
        predictions[fold == f] = everywhere[fold == f]
        correct += int((everywhere == labels)[fold != f].sum())
        chosen.append(penalty)
    return CrossValidated(predictions, tuple(chosen), correct / ((FOLDS - 1) * len(labels)))


def learning_curve(
    x: FloatArray,
    labels: IntArray,
    fold: IntArray,
    penalties: Sequence[float],
    sizes: Sequence[int],
) -> _Array:
    """Accuracy of heads that saw a limited number of examples of each class.

    Args:
        x: float32 (n, d).
        labels: int64 (n,), from 0.
        fold: from :func:`split_folds`.
        penalties: the penalty of each fold's head.
        sizes: largest numbers of examples per class, ascending; each set contains the smaller ones.

    Returns:
        float64 (sizes, FOLDS), each on its own fold.
    """
    k = int(labels.max()) + 1
    accuracy = np.empty((len(sizes), FOLDS))
    for f in track(range(FOLDS), "learning from fewer examples", FOLDS):
        held_out = fold == f
        rank = _rank_in_class(labels, ~held_out)
        sums, before = _sums(x[:0], labels[:0], k), 0
        for row, size in enumerate(sizes):
            new = (rank >= before) & (rank < size)
            sums, before = _added([sums, _sums(x[new], labels[new], k)]), size
            hits = _predict(x[held_out], ridge(*sums, penalties[f])) == labels[held_out]
            accuracy[row, f] = hits.mean()
    return accuracy


def _rank_in_class(labels: IntArray, usable: npt.NDArray[np.bool_]) -> IntArray:
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
        yield rows, np.concatenate([x[rows], np.ones((len(x[rows]), 1))], axis=1, dtype=np.float64)


def _sums(x: FloatArray, labels: IntArray, num_classes: int) -> tuple[_Array, _Array]:
    """X^T X (D, D) and Y^T X (K, D) of [x 1]."""
    width = x.shape[1] + 1
    a, b = np.zeros((width, width)), np.zeros((num_classes, width))
    for rows, design in _blocks(x):
        a += design.T @ design
        b += np.eye(num_classes)[labels[rows]].T @ design
    return a, b


def _added(sums: Sequence[tuple[_Array, _Array]]) -> tuple[_Array, _Array]:
    first, second = zip(*sums, strict=True)
    return np.sum(first, axis=0), np.sum(second, axis=0)


def _without(total: tuple[_Array, _Array], fold: tuple[_Array, _Array]) -> tuple[_Array, _Array]:
    return total[0] - fold[0], total[1] - fold[1]


def _predict(x: FloatArray, head: _Array) -> IntArray:
    """Best class of each row under a head (K, D)."""
    blocks = [(design @ head.T).argmax(axis=1) for _, design in _blocks(x)]
    return np.concatenate(blocks) if blocks else np.zeros(0, np.int64)
