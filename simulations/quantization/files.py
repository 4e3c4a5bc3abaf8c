"""A network of floats as a file for each runtime: uint8 images in, pooled features out."""

# No "from __future__ import annotations": TorchScript reads the attributes' types.
import io
import warnings

import torch
from torch import Tensor, nn

from common.backbone._deprecations import accepted_deprecations
from common.backbone.int8 import Normalization
from common.backbone.module import Tapped
from server.export.archive import compact, save_script
from server.export.targets.lite import save_lite

__all__ = ["FloatBackbone", "float_onnx_file", "lite_file", "torchscript_file"]

# 17 is from 2022; nothing newer is needed.
_OPSET = 17


class FloatBackbone(nn.Module):
    """Normalization, a network of floats and pooling in one module, in the network's own type."""

    mean: Tensor
    std: Tensor

    def __init__(self, features: Tapped, normalization: Normalization) -> None:
        super().__init__()
        self.features = features
        self.register_buffer("mean", _channels(normalization.mean))
        self.register_buffer("std", _channels(normalization.std))

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (n, 3, H, W) to float (n, d)."""
        x = (images.to(self.mean.dtype) - self.mean) / self.std
        pooled: list[Tensor] = []
        for tap in self.features(x):
            pooled.append(tap.mean([2, 3]))
        return torch.cat(pooled, dim=1)


def _channels(values: tuple[float, float, float]) -> Tensor:
    return torch.tensor(values).mul(255).reshape(1, 3, 1, 1)


def torchscript_file(module: nn.Module) -> bytes:
    """``.pt``; a scripted module is saved as it is."""
    with accepted_deprecations():
        return compact(save_script(torch.jit.script(module)), {})


def lite_file(module: nn.Module) -> bytes:
    """``.ptl``, for the lite interpreter."""
    with accepted_deprecations():
        return compact(save_lite(torch.jit.script(module)), {})


def float_onnx_file(module: nn.Module, input_size: int) -> bytes:
    """``.onnx``, any number of images."""
    image = torch.zeros((1, 3, input_size, input_size), dtype=torch.uint8)
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # this exporter says that it is the old one
        torch.onnx.export(
            module,
            (image,),
            buffer,  # type: ignore[arg-type]  # this exporter takes it
            dynamo=False,  # the other one needs a package more
            opset_version=_OPSET,
            input_names=["images"],
            output_names=["features"],
            dynamic_axes={"images": {0: "n"}, "features": {0: "n"}},
        )
    return buffer.getvalue()
