"""How far an exported model is from the head that was trained, and how far it may be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.errors import ExportError
from common.types import FloatArray, IntArray
from server.card import SelfCheck

__all__ = ["FLOAT", "INT8_HEAD", "Tolerance", "compare", "other_runtime"]

# Of the largest logit: what two float32 sums in another order may differ by.
_FLOAT32_ROUNDING = 1e-5


@dataclass(frozen=True)
class Tolerance:
    """What an export may be off.

    Attributes:
        disagreement: share of images that may change their class; one always may.
        difference: of a logit, in parts of the logits' spread.
    """

    disagreement: float
    difference: float


FLOAT = Tolerance(0.0, 0.0)
"""The same head in float32: rounding alone."""

INT8_HEAD = Tolerance(0.005, 0.05)
"""Then int8 moves the accuracy by at most half a point. Real heads: 0.2% to 1.2% of the spread."""

_PRETRAINED = Tolerance(0.1, 0.75)
_RANDOM = Tolerance(0.3, 1.0)


def other_runtime(weights: str) -> Tolerance:
    """For the same int8 network where a layer rounds ties otherwise.

    Single steps of a uint8 add up over 60 layers. Pretrained weights: 0% to 4% of the images,
    22% of the spread for the worst logit. Random weights magnify each step, and their classes
    are nearly tied: MobileNetV3-Large under ExecuTorch, whose convolutions give the same bits
    and whose pooling breaks ties the other way: up to 18% and 76%. A processor whose 8-bit products
    overflow: 70% of the images.

    Args:
        weights: the backbone's label of them.
    """
    return _RANDOM if weights == "random" else _PRETRAINED


def compare(
    logits: FloatArray, trained: FloatArray, labels: IntArray, tolerance: Tolerance
) -> SelfCheck:
    """Measure a model's logits against the trained head's.

    Args:
        logits: float32 (n, K), the exported model's.
        trained: float32 (n, K).
        labels: int64 (n,).
        tolerance: what they may differ by.

    Raises:
        ExportError: they differ by more.
    """
    size = np.abs(trained).max(axis=1) if trained.shape[1] == 1 else np.ptp(trained, axis=1)
    spread = float(size.mean())
    rounding = _FLOAT32_ROUNDING * float(np.abs(trained).max())
    difference = float(np.abs(logits - trained).max())
    best = logits.argmax(axis=1)
    # A tie in float32 is nobody's class.
    lost = trained.max(axis=1) - np.take_along_axis(trained, best[:, None], axis=1)[:, 0]
    changed = int((lost > rounding).sum())
    check = SelfCheck(
        images=len(labels),
        accuracy=float((best == labels).mean()),
        argmax_agreement=1 - changed / len(labels),
        max_logit_difference=difference,
        logit_spread=spread,
        tolerated_disagreement=tolerance.disagreement,
        tolerated_difference=max(tolerance.difference * spread, rounding),
    )
    # "not <=" also catches NaN.
    if not difference <= check.tolerated_difference:
        raise ExportError(
            f"the exported model's logits are off by up to {difference:.3g}, "
            f"tolerated are {check.tolerated_difference:.3g}"
        )
    # Of few images one may be nearly a tie.
    if changed > max(1, tolerance.disagreement * len(labels)):
        raise ExportError(
            f"the exported model changes the class of {changed} of {len(labels)} images, "
            f"tolerated are {tolerance.disagreement:.1%}"
        )
    return check
