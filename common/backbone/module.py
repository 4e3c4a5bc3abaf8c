"""The int8 network as TorchScript runs it: uint8 images in, uint8 features out."""

# No "from __future__ import annotations": TorchScript reads the attributes' types.
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Int8Backbone", "Pool", "dtype_name"]


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
    """How quint8 activations become pooled uint8 features.

    Attributes:
        activation_scale: step of the activations before pooling.
        activation_zero_point: their zero point.
        positions: h * w, how many activations a feature is the mean of.
        num_features: d.
        scale: step of the features.
        zero_point: their zero point.
    """

    activation_scale: float
    activation_zero_point: int
    positions: int
    num_features: int
    scale: float
    zero_point: int


class Int8Backbone(nn.Module):
    """Normalization, int8 network and requantized pooling in one module.

    Args:
        quant: the converted input quantizer, float32 to quint8.
        body: the converted network, quint8 (n, 3, H, W) to quint8 (n, d, h, w).
        input_size: H and W in pixels.
        mean: per channel, in [0, 1].
        std: per channel, in [0, 1].
        pool: how the pooled features are quantized.
    """

    mean: Tensor
    std: Tensor
    pool_multiplier: Tensor

    def __init__(
        self,
        quant: nn.Module,
        body: nn.Module,
        input_size: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        pool: Pool,
    ) -> None:
        super().__init__()
        self.quant = quant
        self.body = body
        self.input_size = input_size
        self.register_buffer("mean", torch.tensor(mean).mul(255).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).mul(255).reshape(1, 3, 1, 1))
        self.pool_center = pool.activation_zero_point * pool.positions
        self.zero_point = pool.zero_point
        multiplier = pool.activation_scale / (pool.positions * pool.scale)
        self.register_buffer("pool_multiplier", torch.tensor(multiplier, dtype=torch.float32))

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
        q = self.body(self.quant((images.to(torch.float32) - self.mean) / self.std))
        # Dequantize, mean over space, quantize again; in integers up to one rounded product,
        # because a float mean depends on the order in which a platform adds.
        total = q.int_repr().to(torch.int32).sum(dim=[2, 3], dtype=torch.int32)
        pooled = torch.round((total - self.pool_center).to(torch.float32) * self.pool_multiplier)
        return torch.clamp(pooled + self.zero_point, 0, 255).to(torch.uint8)
