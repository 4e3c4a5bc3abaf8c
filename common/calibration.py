"""Which training images the server keeps to quantize the backbone with."""

from __future__ import annotations

import numpy as np

from common.errors import DataError
from common.seeding import Purpose, permutation
from common.types import IntArray

__all__ = ["LEAST", "SHARE", "calibration_part", "needed_calibration"]

SHARE = 0.15
"""Largest share of the training part: no client trains on these images, and a small data set needs
them more than the quantization does."""

LEAST = 16
"""So many are taken even from a smaller training part."""


def calibration_part(labels: IntArray, train: IntArray, *, most: int, seed: int) -> IntArray:
    """Draw calibration images from all training images, but at most half of each class.

    Clients never own them, and are to train on every class.

    Args:
        labels: int64 (n,), of the whole data set, none negative.
        train: int64 positions of the training part.
        most: upper number, at least 1; :data:`SHARE` may allow fewer.
        seed: seed of the draw.

    Returns:
        Positions, int64, ascending.

    >>> len(calibration_part(np.zeros(400, np.int64), np.arange(400), most=256, seed=0))
    60
    """
    order = train[permutation(len(train), seed, Purpose.CALIBRATION)]
    own = labels[order]
    counts = np.bincount(own)
    rank = np.empty_like(own)  # place of each among those of its class, in the drawn order
    rank[np.argsort(own, kind="stable")] = np.concatenate(
        [np.arange(n) for n in counts] or [np.arange(0)]
    )
    allowed = order[rank < counts[own] // 2]
    return np.sort(allowed[: min(most, max(LEAST, int(SHARE * len(train))))])


def needed_calibration(positions: IntArray, source: str) -> IntArray:
    """The same positions, where there must be some.

    Args:
        positions: from ``calibration_part``.
        source: where the images come from, for the error.

    Raises:
        DataError: there are none.
    """
    if not len(positions):
        raise DataError(
            f"{source}: no image to calibrate with: the server keeps at most half of each class's "
            "training images, and no class has two; add images to one class at least"
        )
    return positions
