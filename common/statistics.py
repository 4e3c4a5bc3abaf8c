"""Sufficient statistics of a linear head, and regression on them in float64.

The features are uint8, so their sums and products are integers: the statistics are exact, and
adding them up gives the same bits in any order, over any split into clients or nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.types import Affine, FeatureSet, IntArray

__all__ = [
    "EXACT_ROWS",
    "Statistics",
    "device_statistics",
    "exact_sum",
    "feature_statistics",
    "in_feature_space",
    "least_squares",
    "ridge",
    "triangle_size",
    "unit_rows",
]

# A float32 product of uint8 matrices is exact while each sum stays below 2**24: 255**2 * 256.
EXACT_ROWS = 256
"""Largest number of examples whose products may be summed in float32."""


def exact_sum(
    start: npt.NDArray[np.uint64], rows: npt.NDArray[np.generic]
) -> npt.NDArray[np.uint64]:
    """Integer sums with further rows added to them.

    Args:
        start: uint64 (...).
        rows: unsigned integers (m, ...).

    Raises:
        OverflowError: a sum does not fit into 64 bits and would wrap around.
    """
    total = start
    for row in rows:
        before, total = total, total + row.astype(np.uint64)
        if (total < before).any():
            raise OverflowError("a sum of statistics is 2^64 or more")
    return total


def triangle_size(width: int) -> int:
    """Entries in the upper triangle, diagonal included, of a (width, width) matrix."""
    return width * (width + 1) // 2


@dataclass(frozen=True, eq=False)
class Statistics:
    """Integer sums over examples of the features q, extended by a constant 1 (D = d + 1).

    Attributes:
        gram: unsigned (D (D + 1) / 2,), upper triangle of ``sum [q 1]^T [q 1]``, row by row.
        moments: unsigned (K, D), ``sum onehot^T [q 1]``; the last column is the class counts.
    """

    gram: npt.NDArray[np.unsignedinteger]
    moments: npt.NDArray[np.unsignedinteger]

    @property
    def num_examples(self) -> int:
        return int(self.moments[:, -1].sum())

    @property
    def varies(self) -> npt.NDArray[np.bool_]:
        """Which of the D columns carry information: features that are not constant, and the 1.

        bool (D,). Exact: by Cauchy and Schwarz a feature is constant if and only if its mean
        times its sum is its sum of squares.
        """
        width = self.moments.shape[1]
        first = np.cumsum([0, *range(width, 1, -1)])  # of each row of the triangle: the diagonal
        squares, sums = self.gram[first], self.gram[first + np.arange(width)[::-1]]
        mean, rest = np.divmod(sums, max(self.num_examples, 1))
        varies: npt.NDArray[np.bool_] = (rest != 0) | (squares != mean * sums)
        varies[-1] = True
        return varies

    def in_feature_space(
        self, affine: Affine
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """The same sums for the features that trainers see, x = [gain * (q - center), 1].

        Returns:
            A = X^T X, float64 (D, D), and B = Y^T X, float64 (K, D).
        """
        width = self.moments.shape[1]
        upper = np.zeros((width, width))
        upper[np.triu_indices(width)] = self.gram
        gram = upper + np.triu(upper, 1).T
        # x = [q 1] T, with T = [[diag(gain), 0], [-gain * center, 1]]
        gain, center = affine.gain.astype(np.float64), affine.center.astype(np.float64)
        count, sums = gram[-1, -1], gram[-1, :-1]
        centered = gram[:-1, :-1] - np.outer(center, sums) - np.outer(sums, center)
        centered += count * np.outer(center, center)
        a = np.empty_like(gram)
        a[:-1, :-1] = centered * np.outer(gain, gain)
        a[-1, :-1] = a[:-1, -1] = (sums - count * center) * gain
        a[-1, -1] = count
        return a, in_feature_space(self.moments, affine)


def in_feature_space(
    moments: npt.NDArray[np.unsignedinteger], affine: Affine
) -> npt.NDArray[np.float64]:
    """Class sums of [q 1] as class sums of x: B = Y^T X, float64 (K, D)."""
    b = moments.astype(np.float64)
    center = affine.center.astype(np.float64)
    b[:, :-1] = (b[:, :-1] - np.outer(b[:, -1], center)) * affine.gain.astype(np.float64)
    return b


def _smallest(array: npt.NDArray[np.float64] | IntArray) -> npt.NDArray[np.unsignedinteger]:
    # uint32 halves the uplink and is exact up to 66,051 examples at full scale.
    dtype = np.uint32 if array.max(initial=0) < 2**32 else np.uint64
    return array.astype(dtype)


def feature_statistics(features: FeatureSet, num_classes: int) -> Statistics:
    """Sum one client's examples.

    Args:
        features: uint8 (n, d) with labels in [0, num_classes).
        num_classes: K.

    Returns:
        uint32 arrays where they fit, else uint64.
    """
    width = features.num_features + 1
    gram = np.zeros((width, width))
    moments = np.zeros((num_classes, width))
    for start in range(0, len(features), EXACT_ROWS):
        labels = features.labels[start : start + EXACT_ROWS]
        block = np.ones((len(labels), width), np.float32)
        block[:, :-1] = features.q[start : start + EXACT_ROWS]
        gram += block.T @ block
        onehot = np.zeros((len(labels), num_classes), np.float32)
        onehot[np.arange(len(labels)), labels] = 1
        moments += onehot.T @ block
    return Statistics(_smallest(gram[np.triu_indices(width)]), _smallest(moments))


def device_statistics(a: IntArray, b: IntArray, n: IntArray) -> Statistics:
    """The result of a phone's ``statistics``, in the form of ``feature_statistics``.

    Args:
        a: int64 (D (D + 1) / 2,), upper triangle of ``sum [q 1]^T [q 1]``.
        b: int64 (K, d), each class's sum of q.
        n: int64 (K,), each class's number of examples.
    """
    return Statistics(_smallest(a), _smallest(np.concatenate([b, n[:, None]], axis=1)))


def ridge(
    a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], lam: float, normalize: bool = False
) -> npt.NDArray[np.float64]:
    """Ridge regression onto one-hot labels: ``W = B (A + lam I)^-1``.

    Args:
        a: float64 (D, D), X^T X.
        b: float64 (K, D), Y^T X.
        lam: > 0; applies to the bias too, as in Fed3R (arXiv 2406.01116).
        normalize: divide each class's row by its norm, as Fed3R does.

    Returns:
        float64 (K, D), weight and bias.
    """
    # NumPy cannot solve triangular systems, so Cholesky would need two more LUs: three times the
    # cost of this one LU.
    weight = np.asarray(np.linalg.solve(a + lam * np.eye(len(a)), b.T).T, np.float64)
    return unit_rows(weight) if normalize else weight


def least_squares(
    a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], varies: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """Least squares onto one-hot labels, ``W A = B``; constant features get no weight.

    Columns are scaled to length 1 first. MobileNet's features differ much in size: this lowers the
    condition number of X from 18,000 to 200, and the normal equations square it. If several heads
    fit equally well, as with fewer examples than features, the result is the shortest of them.

    Args:
        a: float64 (D, D), X^T X.
        b: float64 (K, D), Y^T X.
        varies: bool (D,), see ``Statistics.varies``.

    Returns:
        float64 (K, D), weight and bias.
    """
    a, b_kept = a[np.ix_(varies, varies)], b[:, varies]
    length = np.sqrt(np.diag(a))
    values, vectors = np.linalg.eigh(a / np.outer(length, length))
    if not (values > _cut(values)).all():  # choose the shortest head, in the head's own units
        length = np.ones_like(length)
        values, vectors = np.linalg.eigh(a)
    alive = values > _cut(values)
    basis = vectors[:, alive] / length[:, None]
    weight = np.zeros_like(b)
    weight[:, varies] = (b_kept @ basis / values[alive]) @ basis.T
    return weight


def _cut(values: npt.NDArray[np.float64]) -> float:
    """The threshold up to which eigenvalues are rounding errors."""
    return float(values[-1]) * len(values) * float(np.finfo(np.float64).eps)


def unit_rows(matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Each row divided by its norm; a row of zeros stays zero."""
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    scaled: npt.NDArray[np.float64] = matrix / np.where(norms > 0, norms, 1)
    return scaled
