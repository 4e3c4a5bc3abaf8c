"""Compares an exported model with the trained head, and finds differences beyond rounding.

Promises are checked strictly. With the card's engine, the features are bit for bit those of the
training, and the logits differ by no more than rounding explains; the bound follows from the
arithmetic, not from experience. The rounding of another engine or runtime over 60 layers depends on
the processor, and with random weights it grows until classes change. So that difference is only
reported, in the card and one log line.
"""

from __future__ import annotations

import logging

import numpy as np

from common.errors import ExportError
from common.types import FloatArray, IntArray
from server.export.card import SelfCheck

__all__ = ["check_delta", "check_within", "measure", "rounding", "tell"]

logger = logging.getLogger("fedhead")

# With pretrained networks, other rounding changes the class of 1 % to 4 % of the images.
_MUCH = 0.05
_MAX_DELTA_DIFFERENCE = 1e-4  # of the largest entry; another order of sums gives some 1e-6


def rounding(x: FloatArray, matrix: FloatArray) -> FloatArray:
    """Largest difference of ``x @ matrix.T`` between two float32 sums in different orders.

    Args:
        x: float32 (n, D).
        matrix: float32 (K, D).

    Returns:
        (n, K); Higham, "Accuracy and Stability of Numerical Algorithms", section 3.1.
    """
    size = np.abs(x) @ np.abs(matrix).T
    # (D + 1) half steps for each of the two, and one more for the rounding of the size.
    bound: FloatArray = size * np.float32((x.shape[1] + 2) * np.finfo(np.float32).eps)
    return bound


def check_within(logits: FloatArray, expected: FloatArray, bound: FloatArray, what: str) -> None:
    """Refuse logits that differ by more than rounding explains.

    Args:
        logits: float32 (n, K).
        expected: float32 (n, K).
        bound: (n, K), largest allowed difference of each.
        what: words for the model with these logits.

    Raises:
        ExportError: names the logit that is farthest beyond its bound; NaN counts as beyond.
    """
    off = np.abs(logits.astype(np.float64) - expected)
    if (off <= bound).all():
        return
    image, label = np.unravel_index(np.argmax(np.nan_to_num(off - bound, nan=np.inf)), off.shape)
    raise ExportError(
        f"{what}: the logit of class {label} of image {image} is off by "
        f"{off[image, label]:.3g}, rounding explains {bound[image, label]:.3g}"
    )


def check_delta(delta: FloatArray, expected: FloatArray) -> None:
    """Refuse a file that trains otherwise.

    Args:
        delta: float32 (K, d + 1), the change of the head that the file's training gives.
        expected: the same of the training side.

    Raises:
        ExportError: they differ by more than another order of sums explains; NaN counts, too.
    """
    off, size = float(np.abs(delta - expected).max()), float(np.abs(expected).max())
    if not off <= _MAX_DELTA_DIFFERENCE * size:
        raise ExportError(
            f"the exported file trains a head that is off by {off:.3g}, where training "
            f"moves it by {size:.3g}"
        )


def measure(logits: FloatArray, trained: FloatArray, labels: IntArray) -> SelfCheck:
    """Compare a model's logits with the trained head's.

    Args:
        logits: float32 (n, K), of the exported model.
        trained: float32 (n, K), of the trained head.
        labels: int64 (n,).

    Raises:
        ExportError: the logits are not finite.
    """
    if not np.isfinite(logits).all():
        raise ExportError("the exported model's logits are not finite")
    size = np.abs(trained).max(axis=1) if trained.shape[1] == 1 else np.ptp(trained, axis=1)
    best = logits.argmax(axis=1)
    # On a tie in float32, neither class is wrong.
    lost = trained.max(axis=1) - np.take_along_axis(trained, best[:, None], axis=1)[:, 0]
    tie = np.finfo(np.float32).eps * np.abs(trained).max()
    return SelfCheck(
        images=len(labels),
        accuracy=float((best == labels).mean()),
        argmax_agreement=float((lost <= tie).mean()),
        max_logit_difference=float(np.abs(logits - trained).max()),
        logit_spread=float(size.mean()),
    )


def tell(check: SelfCheck, who: str, advice: str) -> None:
    """Log a line if a model gives many images another class than the trained head.

    Args:
        check: the model's figures.
        who: words for the model or engine.
        advice: what to do about it.
    """
    changed = round((1 - check.argmax_agreement) * check.images)
    if changed > _MUCH * check.images:
        logger.warning(
            "%s gives %d of %d images another class; %s", who, changed, check.images, advice
        )
