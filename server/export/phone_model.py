"""What the phone runs: the int8 backbone and an int8 head that reads its uint8 features.

Why the head's matrix has a scale for each class AND for each feature: folding
``x = gain * (q - center)`` into the weight spreads a row over as many orders of magnitude as
the gains (a nearly constant feature has a gain of thousands). With one scale a class, int8
then rounds everything else away: on 1,000 MNIST images with standardized features, 81% to 99.8%
of the predictions survived. With a second scale a feature (d integers) 99.9% to 100% did, and
the largest error of a logit was 0.2% to 1.2% of the logits' spread; without standardization
it is better, too (1.0% against 2.4%).

Why float64: weight, feature scale and q are integers, and all their sums stay below 2**53, so
the product is exact in whatever order a BLAS adds. Logits therefore depend neither on the rest
of the batch, nor on the number of threads, nor on the processor.
"""

# No `from __future__ import annotations`: TorchScript cannot read annotations that are strings.

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from common.images import ByteArray
from common.types import Affine, FloatArray, Head

__all__ = ["Int8Head", "PhoneHead", "PhoneModel", "quantize_head"]

_INT8_MAX = 127
# 127 * 255 * 2**20 * d < 2**53 for every d below 265,000.
_FEATURE_SCALE_MAX = 2**20


@dataclass(frozen=True, eq=False)
class Int8Head:
    """``logits = class_scale * (weight @ (feature_scale * q)) + bias``.

    Attributes:
        weight: int8 (K, d), in [-127, 127].
        feature_scale: int32 (d,), in [1, 2**20].
        class_scale: float64 (K,).
        bias: float64 (K,).
    """

    weight: npt.NDArray[np.int8]
    feature_scale: npt.NDArray[np.int32]
    class_scale: npt.NDArray[np.float64]
    bias: npt.NDArray[np.float64]

    def error_bound(self, q: ByteArray, center: FloatArray) -> FloatArray:
        """What the rounded weights may change in the logits of uint8 features (n, d): (n, K).

        Half a step for each weight, times how far the feature is from its center.
        """
        step = (self.class_scale[:, None] * self.feature_scale).astype(np.float32)
        bound: FloatArray = np.abs(q - center) @ (step / 2).T
        return bound


def quantize_head(head: Head, affine: Affine) -> Int8Head:
    """Fold the backbone's affine map into the head and round the weight to int8.

    The bias takes up the rounded weight's share of ``center``, so that an error of the weight
    counts only by a feature's distance from its center.
    """
    folded = head.weight.astype(np.float64) * affine.gain.astype(np.float64)
    largest = np.abs(folded).max(axis=0)
    top = float(largest.max()) or 1.0
    feature_scale = np.clip(np.rint(largest / top * _FEATURE_SCALE_MAX), 1, _FEATURE_SCALE_MAX)
    class_scale = np.abs(folded / feature_scale).max(axis=1) / _INT8_MAX
    class_scale[class_scale == 0.0] = 1.0
    step = class_scale[:, None] * feature_scale
    weight = np.rint(folded / step)
    bias = head.bias.astype(np.float64) - (weight * step) @ affine.center.astype(np.float64)
    return Int8Head(weight.astype(np.int8), feature_scale.astype(np.int32), class_scale, bias)


class PhoneHead(torch.nn.Module):
    """uint8 features (n, d) to float32 logits (n, K)."""

    weight: Tensor
    feature_scale: Tensor
    class_scale: Tensor
    bias: Tensor

    def __init__(self, head: Int8Head) -> None:
        super().__init__()
        self.register_buffer("weight", torch.from_numpy(head.weight))
        self.register_buffer("feature_scale", torch.from_numpy(head.feature_scale))
        self.register_buffer("class_scale", torch.from_numpy(head.class_scale))
        self.register_buffer("bias", torch.from_numpy(head.bias))

    def forward(self, q: Tensor) -> Tensor:
        x = q.double() * self.feature_scale
        product = torch.matmul(x, self.weight.double().t())
        return (product * self.class_scale + self.bias).float()


class PhoneModel(torch.nn.Module):
    """uint8 images (n, 3, H, W) to float32 logits (n, K)."""

    def __init__(self, backbone: torch.nn.Module, head: PhoneHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(images))
        return logits
