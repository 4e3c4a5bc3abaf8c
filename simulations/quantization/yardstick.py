"""Compares a file's features with the float ones: their cosine, and the accuracy of heads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.types import FloatArray, IntArray
from simulations.probe.crossval import cross_validate, split_folds

__all__ = ["Accuracy", "Yardstick"]

_PENALTY = 100.0  # cross-validation chooses this for MobileNetV2, in fp32 and in int8
# The difference of two networks moves by 0.2 points with the draw of the folds alone.
_DRAWS = 5


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of ridge heads on one file's features.

    Attributes:
        accuracy: in five-fold cross-validation, mean over five draws of the folds, in [0, 1].
        difference: difference to fp32's accuracy, over the same draws.
        difference_error: standard error of the difference, from the images whose result differs.
    """

    accuracy: float
    difference: float
    difference_error: float


class Yardstick:
    """Compares features with the fp32 ones of the same backbone and the same images.

    All features go through the same map, that of the fp32 ones, and all heads have the same
    penalty. So results differ only because of the features.

    Args:
        reference: float32 (n, d), the fp32 features.
        labels: int64 (n,); None with random weights, for which heads mean nothing.
        seed: seed of the folds.
    """

    def __init__(self, reference: FloatArray, labels: IntArray | None, seed: int) -> None:
        self._reference, self._labels = reference, labels
        # Scaled as for training: centred, with a mean variance of 1.
        self._center = reference.mean(axis=0)
        self._scale = max(float(np.sqrt(reference.var(axis=0).mean())), 1e-12)
        if labels is not None:
            self._folds = [split_folds(labels, seed + draw) for draw in range(_DRAWS)]
            self._expected = self._hits(reference, labels)

    def cosine(self, x: FloatArray) -> float:
        """Mean cosine of an image's features to the fp32 ones."""
        products = (x * self._reference).sum(axis=1)
        norms = np.linalg.norm(x, axis=1) * np.linalg.norm(self._reference, axis=1)
        return float((products / np.maximum(norms, 1e-12)).mean())

    def accuracy(self, x: FloatArray) -> Accuracy | None:
        """Accuracy of heads on these features; None without labels."""
        if self._labels is None:
            return None
        hits = self._hits(x, self._labels)
        gained = hits - self._expected
        error = float(np.sqrt(np.square(gained).sum())) / len(gained)
        return Accuracy(float(hits.mean()), float(gained.mean()), error)

    def _hits(self, x: FloatArray, labels: IntArray) -> FloatArray:
        """Share of the draws in which each image is recognized, float32 (n,)."""
        scaled = (x - self._center) / np.float32(self._scale)
        hits = [
            cross_validate(scaled, labels, fold, _PENALTY).predictions == labels
            for fold in self._folds
        ]
        return np.asarray(np.mean(hits, axis=0), np.float32)
