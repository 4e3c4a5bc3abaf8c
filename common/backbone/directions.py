"""Finds a projection: the directions in which features of unlabelled images vary most."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from common.backbone.projection import MOST_WEIGHT, Projection
from common.backbone.spec import Directions
from common.errors import BackboneError
from common.seeding import Purpose, normal
from common.types import Affine

__all__ = ["find_projection"]

_Float64Array = npt.NDArray[np.float64]
_Bytes = npt.NDArray[np.uint8]

_MOST = 255  # with the bias 256, a power of two, to which codecs that rotate fill up
_FEW = 192  # of fewer than about 200 images, heads are more accurate with random ones added
_WHITENING = 0.5
# Standard deviations, and times the largest value, that z can hold: other images vary more.
_DEVIATIONS, _MARGIN = 5.0, 1.25
_DEAD = 1e-6  # of the largest singular value: rounding
_FOLDS = 5


def find_projection(q: _Bytes, affine: Affine, wanted: Directions, seed: int) -> Projection:
    """The projection ``z = Lambda^(-p/2) U^T x``, p = 0.5, of features x = affine(q).

    U are the principal directions of the images' features, and Lambda the variances of images
    along them, of others too. Where there are too few images for the directions wanted, random
    ones are added, orthogonal to those found. With p = 0.5 the large variances are halfway to
    equal, which helps gradient descent and hardly magnifies noise. The mean variance of what
    trainers see stays that of x.

    Args:
        q: uint8 (n, d), features of unlabelled images.
        affine: how trainers see them.
        wanted: the number of directions; "auto": one fewer than there are images and at most 255,
            or if that is below 192, 255 with random ones.
        seed: of the random directions.

    Raises:
        BackboneError: there are fewer features than directions wanted, or the images have all
            the same features.
    """
    d = q.shape[1]
    if wanted != "auto" and wanted > d:
        raise BackboneError(
            f"backbone.projection: {wanted} directions, but there are only {d} features: set at "
            f"most {d}"
        )
    if not np.ptp(q, axis=0).any():
        raise BackboneError(
            "backbone.projection: all calibration images have the same features, so that there is "
            f'no direction in which they vary (n = {len(q)}): add other images, or set "off"'
        )
    x = np.asarray((q - affine.center.astype(np.float64)) * affine.gain, np.float64)
    rows = _principal(x - x.mean(axis=0))
    size = _size(wanted, len(rows), d)
    directions = rows[:size]
    if size > len(rows):
        directions = np.concatenate([rows, _random(rows, size - len(rows), seed)])
    # At least what a feature has by its rounding to whole numbers alone.
    least = float(np.mean(np.square(affine.gain, dtype=np.float64))) / 12
    spread = np.maximum(np.maximum(_spread(x, size), (x @ directions.T).var(axis=0)), least)
    return _quantized(q, affine, directions.T, spread, float(x.var(axis=0).mean()))


def _principal(x: _Float64Array) -> _Float64Array:
    """The directions, float64 (r, d), in which centered rows (n, d) vary, the most first."""
    _, values, rows = np.linalg.svd(x, full_matrices=False)
    return np.asarray(rows[values > _DEAD * values[0]], np.float64)


def _spread(x: _Float64Array, size: int) -> _Float64Array:
    """Variances of other images along the first principal directions and random ones, (k,).

    A fifth of the images each time, along the directions of the rest: along their own ones, images
    vary less in the last directions than others do.
    """
    n, d = x.shape
    folds = np.arange(n) % _FOLDS
    squares = np.zeros(size)
    for fold in range(min(n, _FOLDS)):
        rest, own = x[folds != fold], x[folds == fold]
        rows = _principal(rest - rest.mean(axis=0))
        along = (own - rest.mean(axis=0)) @ rows.T
        left = np.square(own - rest.mean(axis=0)).sum() - np.square(along).sum()
        other = max(float(left), 0.0) / max(d - len(rows), 1)
        found = np.square(along).sum(axis=0)[:size]
        squares[: len(found)] += found
        squares[len(found) :] += other
    return np.asarray(squares / n, np.float64)


def _size(wanted: Directions, found: int, d: int) -> int:
    if wanted != "auto":
        return wanted
    return min(_MOST, d) if found < _FEW else min(_MOST, found)


def _random(found: _Float64Array, count: int, seed: int) -> _Float64Array:
    """Random orthonormal rows, orthogonal to those found (m, d)."""
    d = found.shape[1]
    draws = normal(count * d, seed, Purpose.PROJECTION).reshape(count, d)
    for _ in range(2):  # the second time for the rounding of the first
        draws -= (draws @ found.T) @ found
    return np.asarray(np.linalg.qr(draws.T)[0].T, np.float64)


def _quantized(
    q: _Bytes, affine: Affine, directions: _Float64Array, spread: _Float64Array, variance: float
) -> Projection:
    """Integers for ``directions``, float64 (d, k), along which features have variances (k,)."""
    # The sign of a direction is arbitrary.
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=0)[None], axis=0)
    folded = affine.gain[:, None].astype(np.float64) * directions * np.sign(largest)
    step = np.abs(folded).max(axis=0) / MOST_WEIGHT
    k = len(step)
    draft = Projection(
        np.rint(folded / step).astype(np.int8),
        np.rint(q.mean(axis=0)).astype(np.uint8),
        np.ones(k, np.float32),
        Affine(np.ones(k, np.float32), np.zeros(k, np.float32)),
    )
    sums = draft.sums(q).astype(np.float64)
    reach = np.maximum(_MARGIN * np.abs(sums).max(axis=0), _DEVIATIONS * np.sqrt(spread) / step)
    multiplier = (127 / reach).astype(np.float32)
    weight = spread ** (-_WHITENING / 2)
    weight *= np.sqrt(variance / np.mean(spread * weight**2))
    view = Affine(
        (weight * step / multiplier).astype(np.float32),
        (128 + (sums * multiplier).mean(axis=0)).astype(np.float32),
    )
    return Projection(draft.basis, draft.center, multiplier, view)
