"""The int8 network as TorchScript runs it: uint8 images in, uint8 features out."""

# No "from __future__ import annotations": TorchScript reads the attributes' types.
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Int8Backbone", "Pool", "Tapped", "dtype_name", "is_last", "num_layers"]


def dtype_name(tensor: Tensor) -> str:
    """A tensor's type for an error's text: TorchScript knows it as a mere number."""
    if tensor.dtype == torch.uint8:
        return "uint8"
    if tensor.dtype == torch.int32:
        return "int32"
    if tensor.dtype == torch.int64:
        return "int64"
    if tensor.dtype == torch.float32:
        return "float32"
    if tensor.dtype == torch.float64:
        return "float64"
    return "another type"


@dataclass(frozen=True)
class Pool:
    """How a block's quint8 activations become pooled uint8 features.

    Attributes:
        activation_scale: step of the activations before pooling.
        activation_zero_point: their zero point.
        positions: h * w, how many activations a feature is the mean of.
        num_features: the block's channels.
        scale: step of the features.
        zero_point: their zero point.
    """

    activation_scale: float
    activation_zero_point: int
    positions: int
    num_features: int
    scale: float
    zero_point: int


class Tapped(nn.Sequential):
    """The activations of some blocks of a network; layers behind the last of them are left out.

    Args:
        network: layers in a ``Sequential``; any other module counts as one layer.
        blocks: the layers' numbers, ascending.
    """

    def __init__(self, network: nn.Module, blocks: Sequence[int]) -> None:
        layers = list(network) if isinstance(network, nn.Sequential) else [network]
        super().__init__(*layers[: blocks[-1] + 1])
        self.blocks = list(blocks)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(n, 3, H, W), float or quint8, to (n, c, h, w) of each block."""
        taps: list[Tensor] = []
        for i, layer in enumerate(self):
            x = layer(x)
            if i in self.blocks:
                taps.append(x)
        return taps


def is_last(network: nn.Module, blocks: Sequence[int]) -> bool:
    """Whether the last layer's activations are the only ones."""
    return list(blocks) == [num_layers(network) - 1]


def num_layers(network: nn.Module) -> int:
    """Layers that ``Tapped`` counts."""
    return len(network) if isinstance(network, nn.Sequential) else 1


class Int8Backbone(nn.Module):
    """Normalization, int8 network and requantized pooling in one module.

    Args:
        quant: the converted input quantizer, float32 to quint8.
        body: the converted ``Tapped`` network.
        input_size: H and W in pixels.
        mean: per channel, in [0, 1].
        std: per channel, in [0, 1].
        pools: how each block's features are quantized.
    """

    mean: Tensor
    std: Tensor
    pool_center: Tensor
    pool_multiplier: Tensor
    pool_zero_point: Tensor

    def __init__(
        self,
        quant: nn.Module,
        body: nn.Module,
        input_size: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        pools: Sequence[Pool],
    ) -> None:
        super().__init__()
        self.quant = quant
        self.body = body
        self.input_size = input_size
        self.register_buffer("mean", torch.tensor(mean).mul(255).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).mul(255).reshape(1, 3, 1, 1))
        centers = [pool.activation_zero_point * pool.positions for pool in pools]
        multipliers = [pool.activation_scale / (pool.positions * pool.scale) for pool in pools]
        zero_points = [pool.zero_point for pool in pools]
        self.register_buffer("pool_center", torch.tensor(centers, dtype=torch.int32))
        self.register_buffer("pool_multiplier", torch.tensor(multipliers, dtype=torch.float32))
        self.register_buffer("pool_zero_point", torch.tensor(zero_points, dtype=torch.int32))

    def forward(self, images: Tensor) -> Tensor:
        """uint8 images (n, 3, H, W) to uint8 features (n, d)."""
        if images.dtype != torch.uint8:
            raise ValueError(f"images are {dtype_name(images)}, expected uint8 pixels")
        size = self.input_size
        if images.dim() != 4 or images.size(1) != 3:
            raise ValueError(f"images have shape {images.shape}, expected (n, 3, {size}, {size})")
        if images.size(2) != size or images.size(3) != size:
            raise ValueError(f"images have shape {images.shape}, expected (n, 3, {size}, {size})")
        if images.size(0) == 0:
            raise ValueError("the batch holds no image")
        taps = self.body(self.quant((images.to(torch.float32) - self.mean) / self.std))
        # Dequantize, mean over space, quantize again; in integers up to one rounded product,
        # because a float mean depends on the order in which a platform adds.
        features: list[Tensor] = []
        for i, q in enumerate(taps):
            total = q.int_repr().to(torch.int32).sum(dim=[2, 3], dtype=torch.int32)
            centered = (total - self.pool_center[i]).to(torch.float32)
            pooled = torch.round(centered * self.pool_multiplier[i])
            features.append(torch.clamp(pooled + self.pool_zero_point[i], 0, 255).to(torch.uint8))
        return torch.cat(features, dim=1)
