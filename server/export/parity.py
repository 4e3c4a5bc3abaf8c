"""How far an exported model is from the head that was trained, and what cannot be rounding.

What is promised is a gate: the shipped engine gives the training side's features to the bit, and
logits within what rounding can explain, a bound that follows from the arithmetic and not from
experience. How another engine or runtime rounds 60 layers depends on the processor and, with
random weights, is magnified until classes change: that is a figure, for the card and for one line.
"""

from __future__ import annotations

import logging

import numpy as np

from common.errors import ExportError
from common.types import FloatArray, IntArray
from server.export.card import SelfCheck

__all__ = ["check_within", "measure", "rounding", "tell"]

logger = logging.getLogger("fedhead")

# Other rounding moves 1 % to 4 % of the images of pretrained networks to another class.
_MUCH = 0.05


def rounding(x: FloatArray, matrix: FloatArray) -> FloatArray:
    """What ``x @ matrix.T`` may be off where both sides add up in float32, each in its own order.

    Args:
        x: float32 (n, D).
        matrix: float32 (K, D).

    Returns:
        (n, K); Higham, "Accuracy and Stability of Numerical Algorithms", section 3.1.
    """
    size = np.abs(x) @ np.abs(matrix).T
    # Of each side (D + 1) half steps; one more for the size's own rounding.
    bound: FloatArray = size * np.float32((x.shape[1] + 2) * np.finfo(np.float32).eps)
    return bound


def check_within(logits: FloatArray, expected: FloatArray, bound: FloatArray, what: str) -> None:
    """Refuse logits that are farther off than rounding explains.

    Args:
        logits: float32 (n, K).
        expected: float32 (n, K).
        bound: (n, K), what each may be off.
        what: whose logits they are.

    Raises:
        ExportError: names the logit that is farthest beyond its bound; NaN is.
    """
    off = np.abs(logits.astype(np.float64) - expected)
    if (off <= bound).all():
        return
    image, label = np.unravel_index(np.argmax(np.nan_to_num(off - bound, nan=np.inf)), off.shape)
    raise ExportError(
        f"{what}: the logit of class {label} of image {image} is off by "
        f"{off[image, label]:.3g}, rounding explains {bound[image, label]:.3g}"
    )


def measure(logits: FloatArray, trained: FloatArray, labels: IntArray) -> SelfCheck:
    """Figures of a model's logits beside the trained head's.

    Args:
        logits: float32 (n, K), the exported model's.
        trained: float32 (n, K).
        labels: int64 (n,).

    Raises:
        ExportError: they are not finite.
    """
    if not np.isfinite(logits).all():
        raise ExportError("the exported model's logits are not finite")
    size = np.abs(trained).max(axis=1) if trained.shape[1] == 1 else np.ptp(trained, axis=1)
    best = logits.argmax(axis=1)
    # A tie in float32 is nobody's class.
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
    """One line in the log where a model gives many images another class than the trained head.

    Args:
        check: its figures.
        who: what computes otherwise.
        advice: what to do about it.
    """
    changed = round((1 - check.argmax_agreement) * check.images)
    if changed > _MUCH * check.images:
        logger.warning(
            "%s gives %d of %d images another class; %s", who, changed, check.images, advice
        )
