"""The clients' learning rate, chosen from the curvature of features without labels.

The Hessian of the mean cross-entropy is at most half the Gram matrix ``X^T X / n`` of the examples
x, whatever the head (Boehning, Annals of the Institute of Statistical Mathematics 44, 1992). So the
Gram matrix's largest eigenvalue says on which scale rates make sense, whatever the images and
however the features are scaled.
"""

from __future__ import annotations

import math

import numpy as np

from common.types import FloatArray, Optimizer

__all__ = ["automatic_rate", "curvature", "mean_norm"]

# Descent is sure below 4 on any head. More is better where batches are noisy: probabilities are
# soon nearer to 0 or 1 than the bound assumes, and a round averages many clients.
_STEP = 8.0

# More steps between two rounds let clients drift further apart; larger batches are less noisy.
_BATCH, _LARGEST_BATCH = 10, 50

# Where one direction has most of the variance, all clients swing along it together. So the factor
# on the step is at most a third of the number of directions that would have the same variance.
_DIRECTIONS = 3.0

# With P the features' curvature is 1 at most, whatever the data. What limits the rate is that a
# batch has far fewer examples than P was made of, and that hardly depends on the data.
_PRECONDITIONED = 0.1

# Adam's steps are as long as the rate in every weight: the logits move by the features' length.
_ADAM_STEP = 0.25


def curvature(x: FloatArray) -> tuple[float, float]:
    """The largest eigenvalue of ``X^T X / n`` and its trace, in float64.

    Args:
        x: float32 (n, d + 1), features as trainers see them and a constant 1; n >= 1.

    >>> curvature(np.array([[3, 1], [-3, 1]], np.float32))
    (9.0, 10.0)
    """
    wide = x.astype(np.float64)
    # Both products have the same eigenvalues but zeros; the smaller one is cheap.
    product = wide @ wide.T if len(wide) < wide.shape[1] else wide.T @ wide
    return float(np.linalg.eigvalsh(product)[-1]) / len(wide), float(np.trace(product)) / len(wide)


def mean_norm(x: FloatArray) -> float:
    """The mean norm of features without their constant 1, rounded to four digits.

    Args:
        x: float32 (n, d + 1); n >= 1.

    >>> mean_norm(np.array([[3, 4, 1], [0, 10, 1]], np.float32))
    7.5
    """
    norms = np.linalg.norm(x[:, :-1].astype(np.float64), axis=1)
    return float(f"{norms.mean():.4g}")


def automatic_rate(
    x: FloatArray,
    *,
    optimizer: Optimizer = "sgd",
    momentum: float = 0.0,
    local_epochs: int = 1,
    batch_size: int = _BATCH,
    preconditioned: bool = False,
) -> float:
    """The rate that ``train.lr = "auto"`` means, rounded to three digits.

    Rounded, because the last bits of an eigenvalue differ between machines.

    Args:
        x: float32 (n, d + 1), the calibration images' features and a constant 1; n >= 1.
        optimizer: the clients' optimizer.
        momentum: of SGD; the rate falls with the root of ``1 - momentum``, as a client's few steps
            do not gather all of a velocity.
        local_epochs: passes over a client's examples in each round; the rate falls with its root.
        batch_size: examples per step; the rate rises with its root, up to 50 of them.
        preconditioned: whether clients multiply gradients by the inverse Gram matrix.
    """
    largest, trace = curvature(x)
    if optimizer != "sgd":
        rate = _ADAM_STEP / math.sqrt(trace)
    elif preconditioned:
        rate = _PRECONDITIONED
    else:
        noise = math.sqrt(min(batch_size, _LARGEST_BATCH) / _BATCH)
        rate = _STEP * min(noise, trace / largest / _DIRECTIONS) / largest
        rate /= math.sqrt(local_epochs)
    return float(f"{rate * math.sqrt(1 - momentum):.3g}")
