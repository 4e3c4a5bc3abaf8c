"""Measures how much dynamic quantization shrinks whole classifiers, as is often claimed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.ao.quantization as tq
import torchvision
from torch import nn
from torch.ao.nn.quantized.dynamic import Linear

from common.backbone._deprecations import accepted_deprecations
from simulations.quantization.files import torchscript_file

__all__ = ["DynamicSizes", "dynamic_sizes"]


@dataclass(frozen=True)
class DynamicSizes:
    """One network with ImageNet's classifier, as TorchScript.

    Attributes:
        name: its name in torchvision.models.
        before_bytes: size in fp32.
        after_bytes: size after dynamic quantization.
        quantized_layers: number of quantized layers.
    """

    name: str
    before_bytes: int
    after_bytes: int
    quantized_layers: int


def dynamic_sizes(names: Sequence[str]) -> Iterator[DynamicSizes]:
    """Measure networks by name; sizes do not depend on the weights' values."""
    for name in names:
        with torch.random.fork_rng(devices=[]), accepted_deprecations():
            network: nn.Module = getattr(torchvision.models, name)().eval()
            small = tq.quantize_dynamic(network, {nn.Linear})  # type: ignore[no-untyped-call]
            layers = sum(isinstance(module, Linear) for module in small.modules())
            sizes = [len(torchscript_file(module)) for module in (network, small)]
        yield DynamicSizes(name, sizes[0], sizes[1], layers)
