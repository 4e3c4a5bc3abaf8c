"""The temperature that turns a head's logits into probabilities, fitted from sums.

Guo et al., "On calibration of modern neural networks", ICML 2017, arXiv 1706.04599: logits are
divided by one number T > 0, which changes no prediction. Differs from the paper: the held-out
examples stay where they are. Their owners send only the loss at each value of a fixed grid; sums
over clients are all that the fit needs, so it is the same for any partition.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from common.errors import ReplyError
from common.seeding import Purpose, normal
from common.types import Affine, Head, IntArray

__all__ = [
    "SHARPNESS",
    "check_losses",
    "fit_temperature",
    "largest_spread",
    "losses_by_sharpness",
    "ridge_temperature",
    "scaled",
]

_Array = npt.NDArray[np.float64]

_HALF_OCTAVES = 48

SHARPNESS: _Array = 2.0 ** ((np.arange(_HALF_OCTAVES + 1) - _HALF_OCTAVES // 2) / 2)
"""float64 (49,), the values of 1/T that losses are told for: from 1/4096 to 4096.

Ridge heads want 5 to 50, a discriminant of few examples below 1/100.
"""

_ROUNDING = 1e-6  # of a loss
_SAMPLES = 8192  # of imagined examples, all classes together


def losses_by_sharpness(logits: npt.NDArray[np.floating], labels: IntArray) -> _Array:
    """Each example's cross-entropy at each value of ``SHARPNESS``.

    Args:
        logits: (n, K).
        labels: int64 (n,), in [0, K).

    Returns:
        float64 (n, 49), >= 0.
    """
    rows = logits.astype(np.float64)
    below = rows - rows.max(axis=1, keepdims=True)  # <= 0
    behind = -np.take_along_axis(below, labels[:, None], axis=1)[:, 0]
    losses = np.empty((len(rows), len(SHARPNESS)))
    # An octave further each term is squared, which is much cheaper than another exponential; 24
    # times make an error of 1e-16 one of 2e-9.
    terms = [np.exp(below * start) for start in SHARPNESS[:2]]
    for i, sharpness in enumerate(SHARPNESS):
        term = terms[i % 2]
        losses[:, i] = np.log(term.sum(axis=1)) + sharpness * behind
        np.square(term, out=term)
    return losses


def largest_spread(head: Head, affine: Affine) -> float:
    """A bound on the difference of two logits of one example, whatever its uint8 features."""
    weight = head.weight.astype(np.float64) * affine.gain.astype(np.float64)
    center = affine.center.astype(np.float64)
    ends = weight * -center, weight * (255 - center)
    bias = head.bias.astype(np.float64)
    high = np.maximum(*ends).sum(axis=1) + bias
    low = np.minimum(*ends).sum(axis=1) + bias
    return float(high.max() - low.min()) * (1 + 1e-3)  # logits are float32


def check_losses(losses: _Array, num_classes: int, spread: float) -> None:
    """Refuse mean losses that no examples can have.

    As a function of 1/T a cross-entropy is convex, starts at ln K, and is nowhere steeper than the
    logits are apart.

    Args:
        losses: float64 (49,), mean cross-entropy at each value of ``SHARPNESS``.
        num_classes: K.
        spread: see ``largest_spread``.

    Raises:
        ReplyError: says what is impossible.
    """
    if losses.shape != SHARPNESS.shape:
        raise ReplyError(f"losses by temperature are {losses.shape}, expected {SHARPNESS.shape}")
    if not np.isfinite(losses).all() or (losses < 0).any():
        raise ReplyError("a loss by temperature is no finite number from 0 on")
    start = np.log(num_classes)
    sharpness, curve = np.append(0.0, SHARPNESS), np.append(start, losses)
    slopes = np.diff(curve) / np.diff(sharpness)
    slack = _ROUNDING * (1 + curve[1:] + curve[:-1]) / np.diff(sharpness)
    if (np.abs(slopes) > spread + slack).any():
        raise ReplyError(
            f"losses by temperature change faster than logits {spread:g} apart can make them"
        )
    if (np.diff(slopes) < -(slack[1:] + slack[:-1])).any():
        raise ReplyError("losses by temperature are not convex")


def fit_temperature(losses: _Array, num_examples: int) -> float:
    """The temperature with the smallest loss.

    One example is added that is as far off as the average example is right. Without it, a few
    examples that are all predicted correctly would ask for a temperature of 0.

    Args:
        losses: float64 (49,), sum of all examples' cross-entropies at each value of ``SHARPNESS``.
        num_examples: number of examples, at least 1.

    Returns:
        T, in [1/4096, 4096]; 1 if the loss is the same at all, as with one class.
    """
    if np.ptp(losses) <= _ROUNDING * losses.max():
        return 1.0
    # The slope at the blunt end, where all classes are nearly alike: the mean lead of the truth.
    lead = (losses[0] - losses[1]) / (SHARPNESS[1] - SHARPNESS[0]) / num_examples
    total = losses + max(lead, 0.0) * SHARPNESS
    best = int(np.argmin(total))
    if best < 2 or best > len(total) - 3:
        return float(1 / SHARPNESS[best])
    # A parabola through three points would be 1 to 3 % off: the loss falls and rises unalike.
    steps = np.arange(-2, 3)
    curve = np.polyfit(steps, total[best + steps], 4)
    between = np.linspace(-1, 1, 2001)
    shift = between[np.argmin(np.polyval(curve, between))]
    return float(2.0 ** (-shift / 2) / SHARPNESS[best])


def ridge_temperature(matrix: _Array, a: _Array, b: _Array, freedom: float) -> float:
    """The temperature of a ridge head, estimated from the sums that it was made of.

    Logits of a class are taken as Gaussian, with the mean and the pooled covariance that follow
    from the sums. The head was fitted to these very examples. On new ones its residuals are larger,
    on average by the factor ``1 / (1 - freedom / n)``, by which leave-one-out residuals are, too.

    Of logits drawn so, two temperatures are fitted, and the result is their geometric mean. With
    the labels that the logits were drawn for, it is too low: real residuals have longer tails. With
    labels as likely as the regression says, which is linear where the softmax is not, it is too
    high. On four sets of images it was 35 % above to 20 % below that of unseen examples.

    Args:
        matrix: W = B (A + lam I)^-1, float64 (K, D).
        a: float64 (D, D), X^T X of n examples.
        b: float64 (K, D), Y^T X with one-hot labels.
        freedom: effective degrees of freedom, see common.ridge.Solution.

    Returns:
        T, as in ``fit_temperature``.
    """
    counts = b[:, -1]
    n = counts.sum()
    logits, labels = _imagined(matrix, a, b, 1 / max(1 - freedom / n, 1 / n))
    share = counts / n
    weights = (share / np.maximum(np.bincount(labels, minlength=len(counts)), 1))[labels]
    of_drawn = n * weights @ losses_by_sharpness(logits, labels)
    away = logits - weights @ logits
    truth = np.eye(len(counts))[labels]
    along, size = weights @ (away * (truth - share)).sum(axis=1), weights @ (away**2).sum(axis=1)
    likely = np.maximum(share + along / max(size, np.finfo(np.float64).tiny) * away, 0)
    likely /= likely.sum(axis=1, keepdims=True)
    # Other labels change only the part of a cross-entropy that is linear in 1/T.
    lost = n * weights @ ((truth - likely) * logits).sum(axis=1)
    fits = [fit_temperature(of_drawn + linear * SHARPNESS, int(n)) for linear in (0.0, lost)]
    return math.sqrt(fits[0] * fits[1])


def _imagined(matrix: _Array, a: _Array, b: _Array, larger: float) -> tuple[_Array, IntArray]:
    """Logits of examples that the head was not fitted to (m, K), and their labels (m,)."""
    counts = b[:, -1]
    present = np.flatnonzero(counts)
    each = max(_SAMPLES // len(present), 1)
    means = b[present] / counts[present, None]
    within = a - (means * counts[present, None]).T @ means
    covariance = matrix @ within @ matrix.T / max(counts.sum() - len(present), 1)
    values, vectors = np.linalg.eigh(covariance)
    spread = vectors * np.sqrt(np.maximum(values, 0))
    labels = np.repeat(present, each)
    draws = normal(len(labels) * len(counts), 0, Purpose.TEMPERATURE).reshape(len(labels), -1)
    truth = np.eye(len(counts))[labels]
    fitted = np.repeat(means @ matrix.T, each, axis=0) + draws @ spread.T
    return truth - (truth - fitted) * larger, labels


def scaled(head: Head, temperature: float) -> Head:
    """The head whose logits are those of ``head``, divided by the temperature."""
    return Head.from_matrix(head.matrix.astype(np.float64) / temperature)
