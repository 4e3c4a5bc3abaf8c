"""The networks that can become a backbone, as torchvision builds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.mobilenetv3 import _mobilenet_v3_conf
from torchvision.models.quantization.mobilenetv3 import (
    QuantizableInvertedResidual,
    QuantizableMobileNetV3,
)

from common.backbone._deprecations import accepted_deprecations
from common.errors import BackboneError

__all__ = [
    "ARCHITECTURES",
    "QuantizableMobileNetV3Small",
    "QuantizableNetwork",
    "State",
    "architecture",
    "float_network",
    "quantizable_network",
    "random_network",
    "shapes",
    "skeleton",
]

State = Mapping[str, Tensor]
"""Names as in torchvision's ``features``."""


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


@dataclass(frozen=True)
class Architecture:
    """What tells the supported networks apart."""

    name: str  # of the builder in torchvision.models
    enum: str  # torchvision's float weights
    quantizable: Callable[[], nn.Module]  # the variant with ``fuse_model``
    relu6: bool  # torchvision's quantizable variant replaces ReLU6 by ReLU


_of_torchvision = torchvision.models.quantization
ARCHITECTURES = {
    known.name: known
    for known in (
        Architecture(
            "mobilenet_v2", "MobileNet_V2_Weights", _of_torchvision.mobilenet_v2, relu6=True
        ),
        Architecture(
            "mobilenet_v3_large",
            "MobileNet_V3_Large_Weights",
            _of_torchvision.mobilenet_v3_large,
            relu6=False,
        ),
        Architecture(
            "mobilenet_v3_small",
            "MobileNet_V3_Small_Weights",
            QuantizableMobileNetV3Small,
            relu6=False,
        ),
    )
}


@dataclass(frozen=True)
class QuantizableNetwork:
    """The quantizable variant of a network.

    Attributes:
        module: has ``features`` and ``fuse_model``.
        relu6: its ReLUs stand for ReLU6, so activations must be clipped at 6.
    """

    module: nn.Module
    relu6: bool


def architecture(arch: str) -> Architecture:
    """Look a name up.

    Raises:
        BackboneError: not supported.
    """
    if arch not in ARCHITECTURES:
        raise BackboneError(
            f"unknown backbone {arch!r}, expected one of {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[arch]


def float_network(arch: str, state: State) -> nn.Module:
    """The float network without its classifier, in eval mode.

    Args:
        arch: a key of ``ARCHITECTURES``.
        state: as in ``Weights``; copied.
    """
    features = skeleton(arch).to_empty(device="cpu")
    features.load_state_dict(state)
    return features.eval()


def random_network(arch: str, seed: int) -> nn.Module:
    """The same with random weights; torch's own random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        features: nn.Module = getattr(torchvision.models, architecture(arch).name)().features
    return features.eval()


def quantizable_network(arch: str, features: nn.Module) -> QuantizableNetwork:
    """The variant of a float network that can be fused and quantized, with its weights."""
    known = architecture(arch)
    with accepted_deprecations(), torch.device("meta"):
        network = known.quantizable()
    network.to_empty(device="cpu").get_submodule("features").load_state_dict(features.state_dict())
    return QuantizableNetwork(network.eval(), known.relu6)


@cache
def shapes(arch: str) -> Mapping[str, torch.Size]:
    """Names and shapes of the features' tensors, in torchvision's order."""
    return {key: tensor.shape for key, tensor in skeleton(arch).state_dict().items()}


def skeleton(arch: str) -> nn.Module:
    """Names and shapes without memory: nothing is initialised, no random number is drawn."""
    with torch.device("meta"):
        features: nn.Module = getattr(torchvision.models, architecture(arch).name)().features
    return features
