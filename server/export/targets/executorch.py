"""model.pte: the same int8 network for ExecuTorch, computed by XNNPACK."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from common.backbone.frozen import FrozenBackbone
from common.types import Head
from server.export.float_network import Convolution, Step, recorded
from server.export.other_runtime import export_checked
from server.export.runtime_cards import ExportReport
from server.export.trained import TrainedModel

__all__ = ["StandardModel", "executorch_file", "export_executorch", "lowered", "written"]

# XNNPACK's activations are int8: a q in uint8 becomes q - 128.
_SHIFT = 128
_INT8 = (-128, 127, torch.int8)
_WEIGHTS = (-127, 127, torch.int8)


Call = tuple[nn.Module, tuple[Tensor, ...], tuple[Mapping[int, torch.export.Dim] | None, ...]]
"""A method: its module, its inputs, and the dimensions of each that may change."""


def export_executorch(trained: TrainedModel, path: Path) -> ExportReport:
    """Write the file; it takes one image per call.

    Raises:
        ExportError: it does not run, or its logits are not finite.
        MissingExtraError: executorch is not installed.
    """
    return export_checked(
        trained,
        path,
        "executorch",
        lambda t: executorch_file(t.backbone, t.head),
        "run_executorch.py",
    )


def executorch_file(backbone: FrozenBackbone, head: Head | None) -> bytes:
    """uint8 images (1, 3, H, W) to float32 logits (1, K), or to features (1, d)."""
    return lowered(StandardModel(backbone, head).eval(), backbone.spec.input_size)


def lowered(model: nn.Module, input_size: int) -> bytes:
    """The file of any module that takes one uint8 image of that size."""
    image = torch.zeros((1, 3, input_size, input_size), dtype=torch.uint8)
    return written({"forward": (model, (image,), (None,))}, {})


def written(calls: Mapping[str, Call], constants: Mapping[str, str | int]) -> bytes:
    """The file of several methods.

    Args:
        calls: each method's module, its inputs, all of them different tensors, and of each input
            the dimensions that may change; None: none.
        constants: values that methods without inputs give.
    """
    with _own_warnings(), torch.no_grad():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        programs = {
            name: torch.export.export(module, inputs, dynamic_shapes=shapes)
            for name, (module, inputs, shapes) in calls.items()
        }
        edge = to_edge_transform_and_lower(
            programs, partitioner=[XnnpackPartitioner()], constant_methods=dict(constants)
        )
        data: bytes = edge.to_executorch().buffer
    return data


@contextmanager
def _own_warnings() -> Iterator[None]:
    """Hide the warnings of executorch and torch.export about themselves from the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


class StandardModel(nn.Module):
    """The recorded network in torch's standard operators, each step rounded to int8.

    With a head it gives logits; without one, the features of ``FrozenBackbone.features``.
    """

    def __init__(self, backbone: FrozenBackbone, head: Head | None) -> None:
        super().__init__()
        # This import registers the operators of quantized_decomposed.
        from torch.ao.quantization.fx import _decomposed  # noqa: F401

        self.network = network = recorded(backbone)
        self.spec = backbone.spec
        self.mean, self.std = backbone.module.mean.clone(), backbone.module.std.clone()
        module = backbone.module
        pools = zip(module.pool_center, module.pool_multiplier, module.pool_zero_point, strict=True)
        self.pools = [tuple(float(number) for number in pool) for pool in pools]
        self.gain = torch.from_numpy(backbone.affine.gain.copy())
        self.center = torch.from_numpy(backbone.affine.center.copy())
        self.head: nn.Linear | None = None
        if head is not None:
            self.head = nn.Linear(head.num_features, head.num_classes, device="meta")
            values = {"weight": head.weight, "bias": head.bias}
            self.head.load_state_dict(
                {name: torch.from_numpy(value.copy()) for name, value in values.items()},
                assign=True,
            )
            self.head.requires_grad_(False)
        for i, step in enumerate(network.steps):
            if step.convolution is not None:
                conv = step.convolution
                zeros = np.zeros(len(conv.bias), np.int64)
                arrays: dict[str, npt.NDArray[Any]] = {
                    "weight": conv.weight,
                    "scales": conv.weight_scales,
                    "zeros": zeros,
                    "bias": conv.bias,
                }
                for name, array in arrays.items():
                    self.register_buffer(f"{name}{i}", torch.from_numpy(array.copy()))

    def forward(self, images: Tensor) -> Tensor:
        network = self.network
        x = (images.to(torch.float32) - self.mean) / self.std
        results = [_rounded(x, network.input_scale, network.input_zero_point)]
        for i, step in enumerate(network.steps):
            if step.kind == "pool":
                results.append(_averaged(results[step.inputs[0]]))
                continue
            value = self._step(i, step, [results[k].values() for k in step.inputs])
            results.append(_rounded(value, step.scale, step.zero_point))
        q = torch.cat([self._pooled(i, results[k].q) for i, k in enumerate(network.taps)], dim=1)
        if self.head is None:
            return q
        logits: Tensor = self.head((q - self.center) * self.gain)
        return logits

    def _pooled(self, i: int, q: Tensor) -> Tensor:
        # As ``Int8Backbone`` does it: a float32 sum of whole numbers below 2**24 is exact.
        center, multiplier, zero_point = self.pools[i]
        shift = _SHIFT * q.shape[2] * q.shape[3]
        total = q.to(torch.float32).sum([2, 3]) - (center - shift)
        return torch.clamp(torch.round(total * multiplier) + zero_point, 0, 255)

    def _step(self, i: int, step: Step, inputs: list[Tensor]) -> Tensor:
        if step.convolution is not None:
            value = self._convolution(i, step.convolution, inputs[0])
            return torch.relu(value) if step.kind == "conv_relu" else value
        if step.kind == "add":
            return inputs[0] + inputs[1]
        if step.kind == "mul":
            return inputs[0] * inputs[1]
        if step.kind == "hardswish":
            return nn.functional.hardswish(inputs[0])
        if step.kind == "hardsigmoid":
            return nn.functional.hardsigmoid(inputs[0])
        return torch.flip(inputs[0], [2, 3])

    def _convolution(self, i: int, conv: Convolution, x: Tensor) -> Tensor:
        packed = (getattr(self, f"{name}{i}") for name in ("weight", "scales", "zeros"))
        dequantize = torch.ops.quantized_decomposed.dequantize_per_channel
        weight = dequantize(*packed, 0, *_WEIGHTS)
        bias = getattr(self, f"bias{i}")
        return torch.conv2d(x, weight, bias, conv.stride, conv.padding, 1, conv.groups)


@dataclass(frozen=True, eq=False)
class _Rounded:
    """A result in int8, as XNNPACK has it.

    Each reader dequantizes it separately. If two readers shared that node, XNNPACK's partitions
    would depend on each other in a cycle.
    """

    q: Tensor
    scale: float
    zero_point: int

    def values(self) -> Tensor:
        dequantize = torch.ops.quantized_decomposed.dequantize_per_tensor
        values: Tensor = dequantize(self.q, self.scale, self.zero_point, *_INT8)
        return values


def _rounded(value: Tensor, scale: float, zero_point: int) -> _Rounded:
    """A real result, rounded to steps of a scale; the zero point is that of uint8."""
    quantize = torch.ops.quantized_decomposed.quantize_per_tensor
    whole = quantize(value, scale, zero_point - _SHIFT, *_INT8)
    return _Rounded(whole, scale, zero_point - _SHIFT)


def _averaged(result: _Rounded) -> _Rounded:
    """The mean over both spatial axes, which are kept, as qnnpack rounds it: ties to even."""
    positions = np.float32(result.q.shape[2] * result.q.shape[3])
    scale = np.float32(result.scale)
    multiplier = float(scale / (scale * positions))
    total = result.q.to(torch.float32).sum([2, 3], keepdim=True)
    centered = total - float(result.zero_point * positions)
    whole = torch.round(centered * multiplier) + result.zero_point
    q = torch.clamp(whole, *_INT8[:2]).to(torch.int8)
    return _Rounded(q, result.scale, result.zero_point)
