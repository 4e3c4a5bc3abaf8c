"""Folds a projection into a head, so that a file that only predicts has no use for it."""

from __future__ import annotations

import numpy as np

from common.backbone.projection import Projection
from common.backbone.spec import PROJECTED_ZERO
from common.types import Affine, Head

__all__ = ["folded"]


def folded(head: Head, projection: Projection, affine: Affine) -> Head:
    """The head for the features that a projection is of; only the rounding of z is lost.

    ``x_z = gain_z * (multiplier * (q - center) @ basis + 128 - center_z)`` for a z that is not
    rounded, so with ``V = W * gain_z * multiplier @ basis^T`` the logits are
    ``V @ (q - center) + b + W @ (gain_z * (128 - center_z))``.

    Args:
        head: for x of projected features.
        projection: gives them.
        affine: how trainers see the features q that it is of.

    Returns:
        A head for ``affine(q)``, computed in float64.
    """
    weight = head.weight.astype(np.float64) * projection.affine.gain
    zero = PROJECTED_ZERO - projection.affine.center.astype(np.float64)
    v = (weight * projection.multiplier) @ projection.basis.T.astype(np.float64)
    moved = affine.center.astype(np.float64) - projection.center
    bias = head.bias.astype(np.float64) + weight @ zero + v @ moved
    return Head((v / affine.gain).astype(np.float32), bias.astype(np.float32))
