"""Builds the networks of the table, in float and in the form that can be quantized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from common.backbone._deprecations import accepted_deprecations
from common.backbone.architectures import architecture, imported

__all__ = [
    "QuantizableNetwork",
    "State",
    "float_network",
    "quantizable_network",
    "random_network",
    "shapes",
    "skeleton",
]

State = Mapping[str, Tensor]
"""Tensors by their names in the row's network; in torchvision's, by those below ``features``."""


@dataclass(frozen=True)
class QuantizableNetwork:
    """The variant of a network that can be fused and quantized.

    Attributes:
        module: has ``features`` and ``fuse_model``; or the features themselves.
        relu6: whether its ReLUs stand for ReLU6, so that activations must be clipped at 6.
    """

    module: nn.Module
    relu6: bool


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
    """The float network with random weights; torch's global random state does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _features(arch).eval()


def quantizable_network(arch: str, features: nn.Module) -> QuantizableNetwork:
    """The variant of a float network that can be fused and quantized, with its weights."""
    quantizable = architecture(arch).quantizable
    if not quantizable:
        return QuantizableNetwork(features, relu6=False)
    with accepted_deprecations(), torch.device("meta"):
        network: nn.Module = imported(quantizable)()
    network.to_empty(device="cpu").get_submodule("features").load_state_dict(features.state_dict())
    # torchvision's quantizable variants replace ReLU6 by ReLU.
    relu6 = any(isinstance(module, nn.ReLU6) for module in features.modules())
    return QuantizableNetwork(network.eval(), relu6)


@cache
def shapes(arch: str) -> Mapping[str, torch.Size]:
    """Names and shapes of the features' tensors, in the network's order."""
    return {key: tensor.shape for key, tensor in skeleton(arch).state_dict().items()}


def skeleton(arch: str) -> nn.Module:
    """The network without memory: only names and shapes, no weights and no random draws."""
    with torch.device("meta"):
        return _features(arch)


def _features(arch: str) -> nn.Module:
    network: nn.Module = imported(architecture(arch).network)()
    features: nn.Module = getattr(network, "features", network)
    return features
