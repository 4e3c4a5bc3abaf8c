"""A data set of one's own: which of scikit-learn's digits are an eight?"""

import numpy as np

from common.datasets import Examples


def eights():
    """8 x 8 grey digits, 1,797 of them, in two classes."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images * 255 / 16).astype(np.uint8)  # uint8 (n, H, W[, 3]), or n paths
    labels = np.where(digits.target == 8, "eight", "other")  # names, or numbers into classes=[...]
    writers = np.arange(len(images)) // 90  # who wrote it, for partition.scheme = "natural"
    return Examples(images, labels, columns={"writer": writers})  # and test=Examples(...), if any
