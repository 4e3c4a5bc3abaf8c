"""MobileNetV3-Small in the form that torch's quantization takes, which torchvision lacks."""

from __future__ import annotations

from torchvision.models.mobilenetv3 import _mobilenet_v3_conf
from torchvision.models.quantization.mobilenetv3 import (
    QuantizableInvertedResidual,
    QuantizableMobileNetV3,
)

__all__ = ["QuantizableMobileNetV3Small"]


class QuantizableMobileNetV3Small(QuantizableMobileNetV3):  # type: ignore[misc]
    """The Small network of torchvision's quantizable blocks, which it offers for Large alone.

    Additions and the products of squeeze-and-excitation have scales of their own; names and
    shapes of the weights are those of ``torchvision.models.mobilenet_v3_small``.

    Howard et al.: "Searching for MobileNetV3", ICCV 2019, arXiv 1905.02244.
    """

    def __init__(self) -> None:
        # The one private name: another copy of the table could differ from torchvision's.
        setting, last_channel = _mobilenet_v3_conf("mobilenet_v3_small")
        super().__init__(setting, last_channel, block=QuantizableInvertedResidual)
