"""Measures linear heads on a data set's features, with two references."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.backbone.frozen import FrozenBackbone
from common.config import Config
from common.datasets import Dataset
from common.noise import wilson
from common.types import FloatArray, IntArray
from server.export.run_model import prepare
from simulations.probe.crossval import FOLDS, cross_validate, learning_curve, ridge_head
from simulations.probe.gain import Gain, paired_gain
from simulations.probe.images import ProbeImages, head_features, held_out_predictions

__all__ = ["CurvePoint", "Probe", "probe_data"]

_STEPS = (1, 2, 5)
_NEIGHBOURS = 5
_PIXELS = 16
_CHUNK = 1024


@dataclass(frozen=True)
class CurvePoint:
    """Heads trained on few examples.

    Attributes:
        examples: largest number of examples per class; for the last point, the mean number.
        accuracy: mean over the folds.
        low: accuracy of the worst fold.
        high: accuracy of the best fold.
    """

    examples: float
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Probe:
    """The figures of a probe; shares are in [0, 1].

    Attributes:
        source: the data set's source.
        backbone: the backbone that computed the features.
        classes: K names.
        confusion: int64 (K, K), of the linear heads; rows are true classes.
        training_accuracy: accuracy of the heads on their own training examples.
        curve: learning curve over examples per class, cross-validated over the images that train;
            the last point uses all of them.
        doubling: what the second half of each class's training images adds to the accuracy.
        neighbours: accuracy of nearest neighbours in the same features.
        pixels: accuracy of linear heads on the scaled-down images themselves.
        commonest: share of the largest class, which is the accuracy of always predicting it.
        penalty: median of the heads' ridge penalties.
        has_own_test: whether the source's own test part tested; otherwise five folds did.
    """

    source: str
    backbone: FrozenBackbone
    classes: tuple[str, ...]
    confusion: IntArray
    training_accuracy: float
    curve: tuple[CurvePoint, ...]
    doubling: Gain
    neighbours: float
    pixels: float
    commonest: float
    penalty: float
    has_own_test: bool = False

    @property
    def num_examples(self) -> int:
        """Number of images that tested."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        return float(np.trace(self.confusion) / self.num_examples)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval of the accuracy."""
        return wilson(self.accuracy, self.num_examples)

    def mistakes(self, count: int = 5) -> list[tuple[str, str, int, float]]:
        """The commonest mistakes: true class, predicted class, count, and share of the class."""
        errors = self.confusion - np.diag(np.diagonal(self.confusion))
        order = np.argsort(-errors, axis=None, kind="stable")[:count]
        sizes = self.confusion.sum(axis=1)
        return [
            (self.classes[i], self.classes[j], int(errors[i, j]), float(errors[i, j] / sizes[i]))
            for i, j in (divmod(int(flat), len(self.classes)) for flat in order)
            if errors[i, j]
        ]


def probe_data(config: Config, images: ProbeImages) -> Probe:
    """Probe images with the backbone that [backbone] names.

    Args:
        config: an experiment's configuration; its other sections are ignored.
        images: from ``probe_images``.
    """
    dataset, labels, fold = images.dataset, images.labels, images.folds
    backbone = prepare(config, dataset)
    x = head_features(images, images.train, backbone)
    tested = x
    linear = cross_validate(x, labels, fold)
    predictions, penalty = linear.predictions, float(np.median(linear.penalties))
    training_accuracy, truth = linear.training_accuracy, dataset.labels[images.tested]
    k = dataset.num_classes
    if len(images.test):
        tested = head_features(images, images.test, backbone)
        head = ridge_head(x, labels, k)
        predictions, penalty = head.predict(tested), head.penalty
        training_accuracy = float((head.predict(x) == labels).mean())
    pixels = [_plain_pixels(dataset, part) for part in (images.train, images.test)]
    curve, doubling = _curve(x, labels, fold, linear.predictions == labels)
    return Probe(
        source=config.data.source,
        backbone=backbone,
        classes=tuple(dataset.classes),
        confusion=np.bincount(truth * k + predictions, minlength=k * k).reshape(k, k),
        training_accuracy=training_accuracy,
        curve=curve,
        doubling=doubling,
        neighbours=_neighbours(x, tested, images),
        pixels=float((held_out_predictions(images, pixels[0], pixels[1]) == truth).mean()),
        commonest=float((truth == np.bincount(labels).argmax()).mean()),
        penalty=penalty,
        has_own_test=bool(len(images.test)),
    )


def _curve(
    x: FloatArray, labels: IntArray, fold: IntArray, right: np.ndarray
) -> tuple[tuple[CurvePoint, ...], Gain]:
    """The learning curve, and what its last doubling gained.

    Args:
        x: float32 (n, d).
        labels: int64 (n,).
        fold: int64 (n,).
        right: bool (n,), which examples the heads with all training images get right.
    """
    counts = np.bincount(labels)
    sizes = _sizes(int(np.median(counts)) * (FOLDS - 1) // FOLDS)
    half = -(-counts * (FOLDS - 1) // (2 * FOLDS))
    limits = np.stack([*(np.full_like(counts, size) for size in sizes), half])
    rows = [*learning_curve(x, labels, fold, limits), right]
    shown = (*map(float, sizes), len(labels) * (FOLDS - 1) / FOLDS / len(counts))
    folds = [[float(row[fold == f].mean()) for f in range(FOLDS)] for row in (*rows[:-2], rows[-1])]
    points = tuple(
        CurvePoint(size, float(np.mean(each)), min(each), max(each))
        for size, each in zip(shown, folds, strict=True)
    )
    return points, paired_gain(rows[-2], right)


def _sizes(most: int) -> list[int]:
    """1, 2, 5, 10, 20, 50, ... below ``most``."""
    sizes = (step * 10**power for power in range(10) for step in _STEPS)
    return [size for size in sizes if size < most]


def _neighbours(x: FloatArray, tested: FloatArray, images: ProbeImages) -> float:
    """Accuracy of nearest neighbours among the images that train: of the other folds, or of all."""
    labels, fold = images.labels, images.folds
    if len(images.test):
        found = _nearest(x, labels, tested)
        return float((found == images.dataset.labels[images.test]).mean())
    right = sum(
        int((_nearest(x[fold != f], labels[fold != f], x[fold == f]) == labels[fold == f]).sum())
        for f in range(FOLDS)
    )
    return right / len(labels)


def _nearest(x: FloatArray, labels: IntArray, asked: FloatArray) -> IntArray:
    """The class that the nearest known examples vote for, weighted by their cosine."""
    known, unit = (_unit(rows) for rows in (x, asked))
    answers = np.empty(len(asked), np.int64)
    for start in range(0, len(asked), _CHUNK):
        cosine = unit[start : start + _CHUNK] @ known.T
        near = np.argpartition(-cosine, min(_NEIGHBOURS, len(known)) - 1, axis=1)[:, :_NEIGHBOURS]
        votes = np.zeros((len(cosine), int(labels.max()) + 1))
        weight = 1 + np.take_along_axis(cosine, near, axis=1)
        np.add.at(votes, (np.arange(len(cosine))[:, None], labels[near]), weight)
        answers[start : start + _CHUNK] = votes.argmax(axis=1)
    return answers


def _unit(x: FloatArray) -> FloatArray:
    unit: FloatArray = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return unit


def _plain_pixels(dataset: Dataset, positions: IntArray) -> FloatArray:
    """The images as features: pixels around 0, with a variance of about 1."""
    parts = [
        dataset.images(positions[start : start + _CHUNK], _PIXELS)
        for start in range(0, len(positions), _CHUNK)
    ]
    pixels = np.concatenate(parts) if parts else np.zeros((0, 3, _PIXELS, _PIXELS), np.uint8)
    flat: FloatArray = pixels.reshape(len(pixels), 3 * _PIXELS**2).astype(np.float32)
    return flat / np.float32(64) - np.float32(2)
