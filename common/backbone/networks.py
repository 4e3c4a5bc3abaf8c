"""The networks that can become a backbone, as torchvision builds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor, nn

from common.backbone._deprecations import accepted_deprecations
from common.errors import BackboneError

__all__ = [
    "ARCHITECTURES",
    "QuantizableNetwork",
    "State",
    "architecture",
    "float_network",
    "quantizable_network",
    "random_network",
    "skeleton",
]

State = Mapping[str, Tensor]
"""Names as in torchvision's ``features``."""


@dataclass(frozen=True)
class Architecture:
    """What tells the supported networks apart."""

    name: str  # of the builder in torchvision.models and torchvision.models.quantization
    enum: str  # torchvision's float weights
    relu6: bool  # torchvision's quantizable variant replaces ReLU6 by ReLU


ARCHITECTURES = {
    "mobilenet_v2": Architecture("mobilenet_v2", "MobileNet_V2_Weights", relu6=True),
    "mobilenet_v3_large": Architecture(
        "mobilenet_v3_large", "MobileNet_V3_Large_Weights", relu6=False
    ),
}


@dataclass(frozen=True)
class QuantizableNetwork:
    """Torchvision's quantizable variant of a network.

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
    if arch == "mobilenet_v3_small":
        raise BackboneError(
            "mobilenet_v3_small is not supported yet: torchvision has no quantizable variant; "
            "use mobilenet_v3_large or mobilenet_v2"
        )
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
        builder = getattr(torchvision.models.quantization, known.name)
        network: nn.Module = builder(weights=None, quantize=False)
    network.to_empty(device="cpu").get_submodule("features").load_state_dict(features.state_dict())
    return QuantizableNetwork(network.eval(), known.relu6)


def skeleton(arch: str) -> nn.Module:
    """Names and shapes without memory: nothing is initialised, no random number is drawn."""
    with torch.device("meta"):
        features: nn.Module = getattr(torchvision.models, architecture(arch).name)().features
    return features
