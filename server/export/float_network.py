"""The int8 network as a list of plain steps; files for other runtimes are made from it.

A converted module keeps its weights packed for one engine, in operators that other runtimes do not
have. So it is run once, on noise, and its operators are recorded. Each step reads earlier results
as real numbers, computes, and rounds its own result to uint8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from common.backbone.frozen import FrozenBackbone, probe_images, quantized_engine
from common.errors import ExportError
from common.types import FloatArray

__all__ = ["Convolution", "Network", "Step", "recorded"]

_KINDS = {
    "aten::_adaptive_avg_pool2d": "pool",
    "aten::flip": "turn",
    "aten::hardsigmoid": "hardsigmoid",
    "quantized::add": "add",
    "quantized::conv2d": "conv",
    "quantized::conv2d_relu": "conv_relu",
    "quantized::hardswish": "hardswish",
    "quantized::mul": "mul",
}
# Operators that only take a quantized tensor apart.
_SILENT = {"aten::_local_scalar_dense", "aten::detach"}


@dataclass(frozen=True, eq=False)
class Convolution:
    """Attributes of a convolution with symmetric weights.

    Attributes:
        weight: int8 (out, in / groups, h, w).
        weight_scales: float32 (out,).
        bias: float32 (out,).
        stride: for both axes.
        padding: for both axes, with the real number 0.
        groups: torch's number of groups.
    """

    weight: npt.NDArray[np.int8]
    weight_scales: FloatArray
    bias: FloatArray
    stride: tuple[int, int]
    padding: tuple[int, int]
    groups: int


@dataclass(frozen=True, eq=False)
class Step:
    """One operator.

    Attributes:
        kind: a value of ``_KINDS``; "pool" is the mean over both spatial axes, which are kept, and
            "turn" reverses both.
        inputs: the results that it reads: 0 is the network's input, i the result of step i - 1.
        scale: the step size of its own result.
        zero_point: the uint8 value that stands for 0.
        convolution: the attributes for the kinds "conv" and "conv_relu".
    """

    kind: str
    inputs: tuple[int, ...]
    scale: float
    zero_point: int
    convolution: Convolution | None = None


@dataclass(frozen=True, eq=False)
class Network:
    """The backbone between its normalized input and its activations before pooling.

    Attributes:
        input_scale: step of the uint8 input.
        input_zero_point: the uint8 value that stands for 0.
        steps: in order.
        taps: the blocks' results, numbered as the inputs of a step.
    """

    input_scale: float
    input_zero_point: int
    steps: tuple[Step, ...]
    taps: tuple[int, ...]


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[Step] = []
        self.results: list[Tensor] = []  # keeps tensors alive, so that no id is used twice

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.name().partition(".")[0]
        if name == "aten::quantize_per_tensor":
            self.results.append(out)
        elif name in _KINDS:
            self.steps.append(self._step(_KINDS[name], args, out))
            self.results.append(out)
        elif name not in _SILENT:
            raise ExportError(f"the backbone uses {name}, which other runtimes do not have")
        return out

    def _step(self, kind: str, args: tuple[Any, ...], out: Tensor) -> Step:
        places = {id(tensor): i for i, tensor in enumerate(self.results)}
        inputs = tuple(places[id(arg)] for arg in args if isinstance(arg, Tensor))
        convolution = _convolution(args[1]) if kind.startswith("conv") else None
        if kind == "pool" and list(args[1]) != [1, 1]:
            raise ExportError(f"the backbone pools to {list(args[1])}, expected [1, 1]")
        if kind == "turn" and list(args[1]) != [2, 3]:
            raise ExportError(f"the backbone turns axes {list(args[1])}, expected [2, 3]")
        return Step(kind, inputs, out.q_scale(), out.q_zero_point(), convolution)


def _convolution(packed: Any) -> Convolution:
    weight, bias = packed.unpack()
    if weight.q_per_channel_zero_points().any():
        raise ExportError("the backbone has weights with a zero point other than 0")
    if list(packed.dilation()) != [1, 1]:
        raise ExportError(f"the backbone has a dilation of {list(packed.dilation())}")
    return Convolution(
        weight.int_repr().numpy(),
        weight.q_per_channel_scales().float().numpy(),
        bias.detach().numpy(),
        tuple(packed.stride()),
        tuple(packed.padding()),
        packed.groups(),
    )


def recorded(backbone: FrozenBackbone) -> Network:
    """Run the backbone once and record its steps.

    Raises:
        ExportError: it uses an unknown operator.
    """
    module = backbone.module
    images = torch.from_numpy(probe_images(backbone.spec.input_size)[:1])
    with quantized_engine(backbone.spec.engine), torch.no_grad():
        normalized = (images.float() - module.mean) / module.std
        with _Recorder() as recorder:
            outputs = module.body(module.quant(normalized))
    places = {id(tensor): i for i, tensor in enumerate(recorder.results)}
    if any(id(out) not in places for out in outputs):
        raise ExportError("a block's result is not that of an operator")
    first = recorder.results[0]
    return Network(
        first.q_scale(),
        first.q_zero_point(),
        tuple(recorder.steps),
        tuple(places[id(out)] for out in outputs),
    )
