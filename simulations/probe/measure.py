"""Measures linear heads on a data set's features, with two references."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from common.backbone.frozen import FrozenBackbone
from common.config import Config
from common.datasets import Dataset
from common.errors import DataError
from common.experiment import experiment_dataset
from common.features import extract
from common.files import cache_root
from common.noise import wilson
from common.types import FloatArray, IntArray
from server.export.run_model import prepare
from simulations.probe.crossval import FOLDS, cross_validate, learning_curve, sample, split_folds

__all__ = ["CurvePoint", "Probe", "probe_data"]

_PENALTIES = (100.0, 10.0, 1000.0, 1.0)  # ties go to the first
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
    """The figures of a probe, all cross-validated over the same folds; shares are in [0, 1].

    Attributes:
        source: the data set's source.
        backbone: label of the backbone that computed the features.
        classes: K names.
        confusion: int64 (K, K), of the linear heads; rows are true classes.
        training_accuracy: accuracy of the heads on their own training examples.
        curve: learning curve over examples per class; the last point uses all examples.
        neighbours: accuracy of nearest neighbours in the same features.
        pixels: accuracy of linear heads on the scaled-down images themselves.
        commonest: share of the largest class, which is the accuracy of always predicting it.
    """

    source: str
    backbone: FrozenBackbone
    classes: tuple[str, ...]
    confusion: IntArray
    training_accuracy: float
    curve: tuple[CurvePoint, ...]
    neighbours: float
    pixels: float
    commonest: float

    @property
    def num_examples(self) -> int:
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


def probe_data(config: Config, *, examples: int) -> Probe:
    """Probe the data set that [data] names with the backbone that [backbone] names.

    Args:
        config: an experiment's configuration; its other sections are ignored.
        examples: largest number of images to use; classes keep their proportions.

    Raises:
        DataError: a class has fewer images than there are folds.
    """
    dataset = experiment_dataset(config)
    positions = sample(dataset.labels, examples, config.data_seed)
    labels = dataset.labels[positions]
    _check(dataset, labels)
    backbone = prepare(config, dataset)
    x = backbone.affine(_features(dataset, positions, backbone))
    fold = split_folds(labels, config.data_seed)
    linear = cross_validate(x, labels, fold, _PENALTIES)
    k = dataset.num_classes
    counts = np.bincount(labels, minlength=k)
    confusion = np.bincount(labels * k + linear.predictions, minlength=k * k).reshape(k, k)
    sizes = _sizes(int(np.median(counts)) * (FOLDS - 1) // FOLDS)
    accuracy = learning_curve(x, labels, fold, linear.penalties, (*sizes, len(labels)))
    shown = (*map(float, sizes), len(labels) * (FOLDS - 1) / FOLDS / k)
    return Probe(
        source=config.data.source,
        backbone=backbone,
        classes=tuple(dataset.classes),
        confusion=confusion,
        training_accuracy=linear.training_accuracy,
        curve=tuple(
            CurvePoint(size, float(row.mean()), float(row.min()), float(row.max()))
            for size, row in zip(shown, accuracy, strict=True)
        ),
        neighbours=_nearest(x, labels, fold),
        pixels=cross_validate(_plain_pixels(dataset, positions), labels, fold, _PENALTIES).accuracy(
            labels
        ),
        commonest=float(counts.max() / len(labels)),
    )


def _check(dataset: Dataset, labels: IntArray) -> None:
    counts = np.bincount(labels, minlength=dataset.num_classes)
    for name, count in zip(dataset.classes, counts, strict=True):
        if count < FOLDS:
            raise DataError(
                f"{dataset.name}: class '{name}' has {count} images in the probe, "
                f"expected at least {FOLDS}, one per fold"
            )


def _features(dataset: Dataset, positions: IntArray, backbone: FrozenBackbone) -> np.ndarray:
    key = dataset.images_key
    if len(positions) < len(dataset):
        key += " " + hashlib.sha256(positions.astype("<i8").tobytes()).hexdigest()
    return extract(
        backbone,
        lambda index: dataset.images(positions[index], backbone.spec.input_size),
        len(positions),
        content_key=key,  # for a whole data set, the key that runs of the same data use
        cache=cache_root(),
    )


def _sizes(most: int) -> list[int]:
    """1, 2, 5, 10, 20, 50, ... below ``most``."""
    sizes = (step * 10**power for power in range(10) for step in _STEPS)
    return [size for size in sizes if size < most]


def _nearest(x: FloatArray, labels: IntArray, fold: IntArray) -> float:
    """Accuracy of nearest neighbours from the other folds, weighted by their cosine."""
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    k, correct = int(labels.max()) + 1, 0
    for f in range(FOLDS):
        known, asked = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
        for start in range(0, len(asked), _CHUNK):
            rows = asked[start : start + _CHUNK]
            cosine = unit[rows] @ unit[known].T
            near = np.argpartition(-cosine, min(_NEIGHBOURS, len(known)) - 1, axis=1)
            near = near[:, :_NEIGHBOURS]
            votes = np.zeros((len(rows), k))
            weight = 1 + np.take_along_axis(cosine, near, axis=1)
            np.add.at(votes, (np.arange(len(rows))[:, None], labels[known[near]]), weight)
            correct += int((votes.argmax(axis=1) == labels[rows]).sum())
    return correct / len(labels)


def _plain_pixels(dataset: Dataset, positions: IntArray) -> FloatArray:
    """The images as features, scaled like the backbone's: centred, with a mean variance of 1."""
    pixels = np.concatenate(
        [
            dataset.images(positions[start : start + _CHUNK], _PIXELS)
            for start in range(0, len(positions), _CHUNK)
        ]
    )
    x = pixels.reshape(len(pixels), -1).astype(np.float32)
    x -= x.mean(axis=0)
    scaled: FloatArray = x / max(float(np.sqrt(np.mean(np.square(x)))), 1e-6)
    return scaled
