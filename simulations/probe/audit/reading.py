"""Attacks by linear algebra: features and labels out of what a client sent. Pure, on arrays.

A step of SGD on one image adds ``lr (y - p) x^T`` to the head: its rows are multiples of the
image's features x, and the entries of ``y - p`` add up to 0, of which the label's alone is
positive. Sums of such products have at most the rank of the number of images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.types import Affine

__all__ = [
    "LoneImage",
    "exact_share",
    "label_of_regression",
    "likeness",
    "lone_classes",
    "lone_image",
    "row_space",
    "told_apart",
    "whole_features",
    "within",
]

Floats = npt.NDArray[np.floating]
Doubles = npt.NDArray[np.float64]

_COARSE, _FINE = 1e-3, 1e-5
"""Relative steps in which the length of features is searched: 255 values of 8 bits move by less
than half a step in the first, and by less than rounding in the second."""
_UNKNOWN, _KNOWN = (0.5, 2.0), (0.98, 1.02)
"""Shortest and longest length that is tried: as a multiple of the calibration images' mean, and of
what the bias says, which noise of all kinds may have moved."""


@dataclass(frozen=True, eq=False)
class LoneImage:
    """What an update tells of the only image behind it.

    Attributes:
        label: the class that it is of.
        x: float64 (d,), its features as trainers see them, of length 1.
        length: of these features, by the bias; None without a bias.
    """

    label: int
    x: Doubles
    length: float | None


def lone_image(update: Floats) -> LoneImage:
    """The image behind an update, as if there were only one.

    The direction is the first right singular vector. The bias's column, which has the left one
    times the length of an entry that is 1, gives its sign and length. Without a bias the sign is
    such that the largest entry of the left one is positive, which is the label's then.

    Args:
        update: (K, d + 1), the last column is the bias's.
    """
    weights, bias = update[:, :-1].astype(np.float64), update[:, -1].astype(np.float64)
    left, sizes, right = np.linalg.svd(weights, full_matrices=False)
    u = left[:, 0]
    along = float(u @ bias)
    sign = np.sign(along if along else u[np.abs(u).argmax()])
    length = float(sizes[0]) / abs(along) if along else None
    return LoneImage(int((sign * u).argmax()), sign * right[0], length)


def label_of_regression(found: LoneImage, update: Floats, head: Floats) -> int:
    """The label behind ``(y - W x) x^T``, by which least squares change: y, once x is known.

    Args:
        found: what ``lone_image`` gave of the update.
        update: (K, d + 1).
        head: W, (K, d + 1).
    """
    x = found.x * (found.length or 1.0)
    residual = update[:, :-1] @ x / float(x @ x)
    return int((residual + head[:, :-1] @ x + head[:, -1]).argmax())


def whole_features(found: LoneImage, affine: Affine, usual: float) -> npt.NDArray[np.uint8]:
    """The whole-numbered features that were sent to the trainer, uint8 (d,).

    Of the lengths that are possible it is the one with which all features come nearest to whole
    numbers: a search that anybody can make, because the affine map is public.

    Args:
        found: what ``lone_image`` gave.
        affine: how features q became x.
        usual: mean length of the calibration images' x, which is public, too.
    """
    about, ends = (usual, _UNKNOWN) if found.length is None else (found.length, _KNOWN)
    low, high = np.log(ends)
    length = _nearest(about * np.exp(np.arange(low, high, _COARSE)), found.x, affine)
    around = np.exp(np.arange(-_COARSE, _COARSE, _FINE))
    length = _nearest(length * around, found.x, affine)
    return np.clip(np.rint(_unscaled(length * found.x, affine)), 0, 255).astype(np.uint8)


def _unscaled(x: Doubles, affine: Affine) -> Doubles:
    return x / affine.gain.astype(np.float64) + affine.center.astype(np.float64)


def _nearest(lengths: Doubles, direction: Doubles, affine: Affine) -> float:
    q = _unscaled(lengths[:, None] * direction, affine)
    return float(lengths[np.abs(q - np.rint(q)).mean(axis=1).argmin()])


def exact_share(read: npt.NDArray[np.uint8], true: npt.NDArray[np.uint8]) -> float:
    """Share of an image's features that were read exactly."""
    return float((read == true).mean())


def likeness(a: Floats, b: Floats) -> float:
    """Cosine of two feature vectors: 1 is the image's own, up to a length; 0 for a zero."""
    norms = float(np.linalg.norm(a.astype(np.float64)) * np.linalg.norm(b.astype(np.float64)))
    return float(a.astype(np.float64) @ b.astype(np.float64)) / norms if norms else 0.0


def row_space(update: Floats, step: float = 0.0) -> Doubles:
    """An orthonormal basis of an update's rows, float64 (rank, d), without the bias's column.

    Args:
        update: (K, d + 1).
        step: distance of neighbouring values, where these are rounded; what rounding alone gives is
            not counted. 0: float32 numbers.
    """
    weights = update[:, :-1].astype(np.float64)
    _, sizes, right = np.linalg.svd(weights, full_matrices=False)
    width = max(weights.shape)
    # A random matrix of that spread has a largest singular value of about twice this root.
    rounding = 2 * step * np.sqrt(width) if step else width * np.finfo(np.float32).eps * sizes[0]
    return np.asarray(right[sizes > rounding], np.float64)


def within(x: Floats, basis: Doubles) -> Doubles:
    """How much of each feature vector lies in a row space: float64 (n,), shares of its square.

    Args:
        x: (n, d).
        basis: as ``row_space`` gives it.
    """
    x = x.astype(np.float64)
    inside, whole = ((x @ basis.T) ** 2).sum(axis=1), (x**2).sum(axis=1)
    shares: Doubles = np.divide(inside, whole, out=np.zeros(len(x)), where=whole > 0)
    return shares


def told_apart(own: Doubles, others: Doubles) -> float:
    """Chance that a client's own image scores above one of somebody else's; 0.5 is guessing.

    >>> told_apart(np.array([0.9, 0.4]), np.array([0.1, 0.4]))
    0.875
    """
    above = (own[:, None] > others).mean()
    equal = (own[:, None] == others).mean()
    return float(above + equal / 2)


def lone_classes(moments: npt.NDArray[np.unsignedinteger]) -> dict[int, npt.NDArray[np.uint8]]:
    """The features of each image that is the only one of its class, uint8 (d,) by class.

    Args:
        moments: (K, d + 1), class sums of the features q; the last column counts the images.
    """
    lone = np.flatnonzero(moments[:, -1] == 1)
    return {int(label): moments[label, :-1].astype(np.uint8) for label in lone}
