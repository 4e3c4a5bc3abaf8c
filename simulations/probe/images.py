"""Which images a probe uses, and what computes their features."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from common.backbone.frozen import FrozenBackbone
from common.config import Config
from common.datasets import Dataset
from common.errors import DataError
from common.experiment import calibration_positions, experiment_dataset
from common.features import extract
from common.files import cache_root
from common.types import FloatArray, IntArray
from simulations.probe.crossval import FOLDS, cross_validate, ridge_head, sample, split_folds

__all__ = ["ProbeImages", "head_features", "held_out_predictions", "probe_images"]


@dataclass(frozen=True, eq=False)
class ProbeImages:
    """The images of a probe.

    Attributes:
        dataset: all images.
        train: int64 positions, ascending: images that heads train on, and that folds divide.
        test: int64 positions, ascending: the source's own test part; empty: the folds test.
        seed: draws the folds.
    """

    dataset: Dataset
    train: IntArray
    test: IntArray
    seed: int

    @property
    def labels(self) -> IntArray:
        """Labels of ``train``."""
        return self.dataset.labels[self.train]

    @property
    def tested(self) -> IntArray:
        """Positions of the images that test, in the order of ``held_out_predictions``."""
        return self.test if len(self.test) else self.train

    @property
    def folds(self) -> IntArray:
        """Fold of each image of ``train``."""
        return split_folds(self.labels, self.seed)

    def fewer(self, count: int) -> ProbeImages:
        """At most ``count`` images to train on and as many to test on, each class with its share.

        Of each class one image per fold stays to train on, however many classes there are.
        """
        train, test = (
            part[sample(self.dataset.labels[part], count, self.seed, least)]
            for part, least in ((self.train, FOLDS), (self.test, 0))
        )
        return ProbeImages(self.dataset, train, test, self.seed)

    def check(self) -> None:
        """Refuse images that cannot be divided into folds.

        Raises:
            DataError: a class has fewer training images than there are folds.
        """
        counts = np.bincount(self.labels, minlength=self.dataset.num_classes)
        for name, count in zip(self.dataset.classes, counts, strict=True):
            if count < FOLDS:
                images = "1 image" if count == 1 else f"{count} images"
                raise DataError(
                    f"{self.dataset.name}: class '{name}' has {images} in the probe, "
                    f"expected at least {FOLDS}, one per fold"
                )


def probe_images(config: Config, examples: int) -> ProbeImages:
    """The images that [data] names, ``fewer`` of each part if there are more than ``examples``.

    If the source has a test part of its own, heads train on what a run's clients would get: the
    training images without those that calibrate.

    Raises:
        DataError: a class has fewer training images than there are folds.
    """
    dataset = experiment_dataset(config)
    train, test = np.arange(len(dataset)), np.zeros(0, np.int64)
    if dataset.has_own_test:
        train = np.setdiff1d(dataset.train, calibration_positions(config))
        test = dataset.test
    images = ProbeImages(dataset, train, test, config.data_seed).fewer(examples)
    images.check()
    return images


def head_features(images: ProbeImages, positions: IntArray, backbone: FrozenBackbone) -> FloatArray:
    """Features as trainers see them, float32 (m, d), of the images at some positions."""
    dataset = images.dataset
    key = dataset.images_key
    if len(positions) < len(dataset):
        key += " " + hashlib.sha256(positions.astype("<i8").tobytes()).hexdigest()
    q = extract(
        backbone,
        lambda index: dataset.images(positions[index], backbone.spec.input_size),
        len(positions),
        content_key=key,  # for a whole data set, the key that runs of the same data use
        cache=cache_root(),
    )
    return backbone.affine(q)


def held_out_predictions(images: ProbeImages, train: FloatArray, test: FloatArray) -> IntArray:
    """What heads answer for the images that test, which they have not seen.

    Args:
        images: the images.
        train: float32 (n, d), features of ``images.train``.
        test: float32 (m, d), features of ``images.test``; not read if the folds test.

    Returns:
        int64, by ``images.tested``.
    """
    if len(images.test):
        return ridge_head(train, images.labels, images.dataset.num_classes).predict(test)
    return cross_validate(train, images.labels, images.folds).predictions
