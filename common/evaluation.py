"""How good a head is on labelled features. The server and each client use this."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from common.temperature import SHARPNESS, losses_by_sharpness
from common.types import FeatureSet, FloatArray, Head, IntArray

__all__ = [
    "Evaluation",
    "calibration_error",
    "evaluate",
    "losses_of",
    "probabilities_of",
    "single_thread",
]

_CHUNK = 8192  # bounds the float copy of the features
_BINS = 15


@contextmanager
def single_thread() -> Iterator[None]:
    """One torch thread inside: fastest for small matrices, and the same bits on any machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Result on n examples.

    Attributes:
        loss: mean cross-entropy.
        confusion: int64 (K, K), rows are true classes, columns predictions.
    """

    loss: float
    confusion: IntArray

    @property
    def num_examples(self) -> int:
        return int(self.confusion.sum())

    @property
    def correct(self) -> int:
        return int(np.trace(self.confusion))

    @property
    def accuracy(self) -> float:
        """Share of correct predictions, in [0, 1]."""
        return self.correct / self.num_examples

    @property
    def class_accuracy(self) -> tuple[float | None, ...]:
        """The same for each true class; None for a class without examples."""
        counts = self.confusion.sum(axis=1)
        hits = np.diagonal(self.confusion)
        return tuple(float(h / n) if n else None for h, n in zip(hits, counts, strict=True))

    @property
    def balanced_accuracy(self) -> float:
        """Mean of the classes' accuracies, of those with examples: each counts alike."""
        known = [share for share in self.class_accuracy if share is not None]
        return sum(known) / len(known)


def evaluate(head: Head, features: FeatureSet) -> Evaluation:
    """Evaluate a head; ties go to the lower class.

    Args:
        head: (K, d).
        features: n >= 1 examples with labels in [0, K).
    """
    matrix = torch.from_numpy(head.matrix)
    loss, k = 0.0, head.num_classes
    confusion = np.zeros((k, k), np.int64)
    with single_thread():
        for part in _parts(features):
            labels = torch.from_numpy(part.labels)
            log_p = torch.log_softmax(torch.from_numpy(part.x) @ matrix.t(), dim=1)
            loss -= float(log_p.gather(1, labels.unsqueeze(1)).double().sum())
            pairs = part.labels * k + log_p.argmax(1).numpy()
            confusion += np.bincount(pairs, minlength=k * k).reshape(k, k)
    return Evaluation(loss / len(features), confusion)


def losses_of(head: Head, features: FeatureSet) -> npt.NDArray[np.float64]:
    """The head's mean cross-entropy at each value of ``common.temperature.SHARPNESS``, (49,)."""
    total = np.zeros_like(SHARPNESS)
    for part in _parts(features):
        total += losses_by_sharpness(_logits(head, part), part.labels).sum(axis=0)
    return total / len(features)


def probabilities_of(
    head: Head, features: FeatureSet, temperature: float
) -> npt.NDArray[np.float64]:
    """The softmax of the head's logits, divided by a temperature: float64 (n, K)."""
    parts = [_logits(head, part) for part in _parts(features)]
    logits = np.concatenate(parts).astype(np.float64) / temperature
    terms = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: npt.NDArray[np.float64] = terms / terms.sum(axis=1, keepdims=True)
    return probabilities


def calibration_error(probabilities: npt.NDArray[np.float64], labels: IntArray) -> float:
    """Expected calibration error, in 15 bins of equal width (Guo et al., arXiv 1706.04599).

    The mean over examples of how far, in the example's bin, the predicted classes' probabilities
    are from the share that is right.

    Args:
        probabilities: float64 (n, K).
        labels: int64 (n,).

    >>> sure = np.array([[0.9, 0.1], [0.9, 0.1]])  # right in one of two
    >>> round(calibration_error(sure, np.array([0, 1])), 6)
    0.4
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * _BINS).astype(np.int64), _BINS - 1)
    off = np.bincount(bins, weights=confidence - right, minlength=_BINS)
    return float(np.abs(off).sum() / len(labels))


def _logits(head: Head, part: FeatureSet) -> FloatArray:
    """float32 (n, K)."""
    with single_thread():
        logits: FloatArray = (torch.from_numpy(part.x) @ torch.from_numpy(head.matrix).t()).numpy()
    return logits


def _parts(features: FeatureSet) -> Iterator[FeatureSet]:
    if len(features) <= _CHUNK:
        yield features  # unsliced, because it keeps its x for the next round
        return
    for start in range(0, len(features), _CHUNK):
        yield features.select(np.arange(start, min(start + _CHUNK, len(features))))
