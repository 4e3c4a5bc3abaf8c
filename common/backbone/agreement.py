"""Moves the scales of an int8 network a little, so that all runtimes round its numbers alike.

Runtimes add up the same integers, but scale the sums in other words: qnnpack multiplies by
``(w * s_in) * (1 / s_out)``, XNNPACK and ONNX Runtime by ``(s_in * w) / s_out``. In float32 these
differ in the last bit for a quarter of all channels, and where a result is nearly a tie, it is
rounded to the other side. With the next scale of the weights, or one of its neighbours, the
products are equal.

qnnpack and XNNPACK add two activations with multipliers of 21 and 20 bits, ONNX Runtime in float32.
They give the same if no exact sum is nearly a tie. None is, where the inputs' steps are multiples
of an odd part of the output's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.ao.nn.quantized import QFunctional
from torch.utils._python_dispatch import TorchDispatchMode

from common.backbone._deprecations import accepted_deprecations
from common.backbone.quantize import Converted
from common.types import FloatArray

__all__ = ["agreed_input", "agreed_sum", "agreed_weights", "make_agree", "whole_biases"]

# Sums of uint8 steps, as parts of the output's step: an exact sum is at least 1 / 2046 from a tie,
# and 20 bits of two multipliers below 2 miss it by at most 255 / 2**20.
_PARTS = 1023
_MOST_ULPS = 1000  # of weights of trained networks, 59 were needed
# As a share of a step of the input. Float32 misses a normalized pixel by less.
_LEAST_MARGIN = 1e-4


def make_agree(network: Converted, mean: Tensor, std: Tensor, size: int) -> None:
    """Move the scales of a network; the engine must be set around this call.

    Args:
        network: changed in place: scales of activations by some parts in 1,000, those of weights
            by less than one in 10,000.
        mean: float32 (1, 3, 1, 1), which is subtracted from pixels in [0, 255].
        std: likewise, which the difference is divided by.
        size: H and W of its images.
    """
    quant: Any = network.quant
    pixels = (torch.arange(256.0).reshape(1, 1, 256, 1) - mean) / std
    quant.scale.fill_(agreed_input(pixels.numpy(), float(quant.scale)))
    image = torch.zeros(1, 3, size, size)
    graph = _Graph.of(network, image)
    fixed: set[int] = set()
    for node in graph.sums:
        _align(graph, node, fixed)
    # Run again: whatever lies between two layers has passed the new scales on.
    for convolution, scale in _Graph.of(network, image).convolutions:
        _nudge(convolution, scale)


@dataclass(frozen=True, eq=False)
class _Sum:
    """A module that adds, and the tensors that it reads and makes, by their identity."""

    module: QFunctional
    inputs: tuple[int, int]
    output: int


class _Graph(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What one forward pass shows of a network: which module makes which tensor from which."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tensors: dict[int, Tensor] = {}  # kept alive, so that no identity is used twice
        self.makers: dict[int, Any] = {}
        self.convolutions: list[tuple[Any, float]] = []
        self.sums: list[_Sum] = []
        self._read: dict[int, tuple[int, int]] = {}

    @classmethod
    def of(cls, network: Converted, image: Tensor) -> _Graph:
        """Run a network once and look on."""
        graph = cls()
        handles = []
        for module in network.body.modules():
            if isinstance(module, QFunctional):
                after = module.activation_post_process.register_forward_hook(graph._added(module))
                handles.append(after)
            elif hasattr(module, "set_weight_bias"):
                handles.append(module.register_forward_hook(graph._convolved))
        try:
            with torch.inference_mode(), accepted_deprecations(), graph:
                network.body(network.quant(image))
        finally:
            for handle in handles:
                handle.remove()
        return graph

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.name().partition(".")[0] in ("quantized::add", "quantized::add_relu"):
            for tensor in (*args[:2], out):
                self.tensors[id(tensor)] = tensor
            self._read[id(out)] = (id(args[0]), id(args[1]))
        return out

    def _added(self, module: QFunctional) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
            # Products pass here, too.
            if (read := self._read.get(id(inputs[0]))) is not None:
                self.makers[id(inputs[0])] = module
                self.sums.append(_Sum(module, read, id(inputs[0])))

        return hook

    def _convolved(self, module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.tensors[id(output)] = output
        self.makers[id(output)] = module
        self.convolutions.append((module, inputs[0].q_scale()))

    def scale(self, tensor: int) -> float:
        """A tensor's step as it is by now."""
        maker = self.makers.get(tensor)
        return float(maker.scale) if maker is not None else self.tensors[tensor].q_scale()


def _align(graph: _Graph, node: _Sum, fixed: set[int]) -> None:
    """Move the scale of a sum and that of one of its inputs, if a module makes it for this sum."""
    free = [tensor for tensor in node.inputs if tensor in graph.makers and tensor not in fixed]
    if node.inputs[0] == node.inputs[1] or not free:
        return
    moved = free[-1]
    kept = node.inputs[node.inputs[0] == moved]
    output, scale = agreed_sum(graph.scale(kept), graph.scale(moved), float(node.module.scale))
    node.module.scale = output
    graph.makers[moved].scale = scale
    fixed.update((*node.inputs, node.output))


def _nudge(convolution: Any, input_scale: float) -> None:
    weight, bias = convolution.weight(), convolution.bias()
    scales = agreed_weights(
        weight.q_per_channel_scales().float().numpy(), input_scale, float(convolution.scale)
    )
    values = whole_biases(bias.detach().numpy(), scales, input_scale)
    moved = torch._make_per_channel_quantized_tensor(
        weight.int_repr(),
        torch.from_numpy(scales).double(),
        weight.q_per_channel_zero_points(),
        weight.q_per_channel_axis(),
    )
    convolution.set_weight_bias(moved, torch.from_numpy(values))


def agreed_input(pixels: FloatArray, scale: float) -> float:
    """The next larger step of the input in which no pixel is nearly a tie, a float32.

    Args:
        pixels: float32, all values that a normalized pixel can have.
        scale: the step so far.
    """
    values = pixels.astype(np.float64).ravel()
    for i in range(1000):
        step = float(np.float32(scale * (1 + i * 1e-5)))
        if np.abs(np.abs(values / step) % 1 - 0.5).min() > _LEAST_MARGIN:
            return step
    return scale


def agreed_sum(kept: float, moved: float, output: float) -> tuple[float, float]:
    """Steps of a sum and of one of its inputs with which no exact sum is nearly a tie.

    Args:
        kept: the step of the input that stays.
        moved: the step of the other.
        output: the step of the sum.

    Returns:
        The steps of the sum and of the other input, both float32: the inputs' are whole multiples
        of 1 / 1023 of the sum's.
    """
    of_kept = max(round(kept / output * _PARTS), 1)
    step = float(np.float32(kept * _PARTS / of_kept))
    of_moved = max(round(moved / step * _PARTS), 1)
    return step, float(np.float32(step * of_moved / _PARTS))


def agreed_weights(scales: FloatArray, input_scale: float, output_scale: float) -> FloatArray:
    """The nearest scales of weights whose products are the same in all words.

    Args:
        scales: float32 (c,), of each output channel.
        input_scale: step of the activations that are read.
        output_scale: step of those that are written.

    Returns:
        float32 (c,).
    """
    found, left = scales.copy(), np.ones(len(scales), bool)
    for i in range(2 * _MOST_ULPS):
        ulps = (i + 1) // 2 * (1 if i % 2 else -1)
        tried = (scales[left].view(np.int32) + np.int32(ulps)).view(np.float32)
        steps, output = tried * np.float32(input_scale), np.float32(output_scale)
        same = steps / output == steps * (np.float32(1) / output)
        places = np.flatnonzero(left)[same]
        found[places], left[places] = tried[same], False
        if not left.any():
            break
    return found


def whole_biases(bias: FloatArray, scales: FloatArray, input_scale: float) -> FloatArray:
    """Biases that are whole numbers of a sum's steps, so that no way of rounding them matters.

    Args:
        bias: float32 (c,).
        scales: float32 (c,), of the weights.
        input_scale: step of the activations that are read.

    Returns:
        float32 (c,).
    """
    steps = scales.astype(np.float64) * np.float32(input_scale)
    whole: FloatArray = (np.rint(bias / steps) * steps).astype(np.float32)
    return whole
