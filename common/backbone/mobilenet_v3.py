"""MobileNetV3-Small in the form that torch's quantization needs; torchvision does not have it."""

from __future__ import annotations

from torchvision.models.mobilenetv3 import _mobilenet_v3_conf
from torchvision.models.quantization.mobilenetv3 import (
    QuantizableInvertedResidual,
    QuantizableMobileNetV3,
)

__all__ = ["QuantizableMobileNetV3Small"]


class QuantizableMobileNetV3Small(QuantizableMobileNetV3):  # type: ignore[misc]
    """The Small network made of torchvision's quantizable blocks; torchvision has only Large.

    Additions and the products of squeeze-and-excitation have their own scales. Names and shapes of
    the weights are those of ``torchvision.models.mobilenet_v3_small``.

    Howard et al.: "Searching for MobileNetV3", ICCV 2019, arXiv 1905.02244.
    """

    def __init__(self) -> None:
        # A private name, used because a copy of the table could come to differ from torchvision's.
        setting, last_channel = _mobilenet_v3_conf("mobilenet_v3_small")
        super().__init__(setting, last_channel, block=QuantizableInvertedResidual)
