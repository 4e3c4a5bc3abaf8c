"""model.onnx: the same int8 network for ONNX Runtime, written operator by operator.

Torch's exporter for quantized modules is deprecated. It also writes int8 weights, and on x86
without VNNI their products with uint8 overflow 16 bits. The weights here are uint8 around 128,
which ONNX Runtime multiplies exactly on all processors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.backbone.frozen import FrozenBackbone
from common.types import Affine, Head
from server.export.float_network import Convolution, Step, recorded
from server.export.other_runtime import export_checked
from server.export.runtime_cards import ExportReport
from server.export.trained import TrainedModel

__all__ = ["export_onnx", "onnx_file"]

# Version 17 is from 2022, and nothing newer is needed. A file says which readers can read it.
_OPSET, _IR_VERSION = 17, 8
_MIDDLE = 128

Array = npt.NDArray[Any]


def export_onnx(trained: TrainedModel, path: Path) -> ExportReport:
    """Write the file.

    Raises:
        ExportError: it does not run, or its logits are not finite.
        MissingExtraError: onnx or onnxruntime is not installed.
    """
    return export_checked(
        trained, path, "onnx", lambda t: onnx_file(t.backbone, t.head), "run_onnx.py"
    )


def onnx_file(backbone: FrozenBackbone, head: Head | None) -> bytes:
    """uint8 "images" (n, 3, H, W) to float32 "logits" (n, K), or to uint8 "features" (n, d)."""
    import onnx
    from onnx import TensorProto, helper

    size = backbone.spec.input_size
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", 3, size, size])
    graph = _Graph()
    features = graph.backbone(backbone)
    if head is None:
        width = backbone.spec.num_features
        result = helper.make_tensor_value_info(features, TensorProto.UINT8, ["n", width])
    else:
        logits = graph.head(features, backbone.affine, head)
        result = helper.make_tensor_value_info(logits, TensorProto.FLOAT, ["n", head.num_classes])
    model = helper.make_model(
        helper.make_graph(graph.nodes, "fedhead", [images], [result], graph.constants),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="fedhead",
    )
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


class _Graph:
    """Nodes in order; each value has a name."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def backbone(self, backbone: FrozenBackbone) -> str:
        network = recorded(backbone)
        mean, std = backbone.module.mean.numpy(), backbone.module.std.numpy()
        value = self._centered(self._float("images"), mean)
        value = self._node("Div", value, self._constant(std))
        whole = [self._whole(value, network.input_scale, network.input_zero_point)]
        results = [self._real(whole[0], network.input_scale, network.input_zero_point)]
        scales = [network.input_scale]
        for step in network.steps:
            inputs = [results[i] for i in step.inputs]
            value = self._step(step, inputs, scales[step.inputs[0]])
            whole.append(self._whole(value, step.scale, step.zero_point))
            results.append(self._real(whole[-1], step.scale, step.zero_point))
            scales.append(step.scale)
        parts = [self._pooled(whole[k], backbone, i) for i, k in enumerate(network.taps)]
        return self._node("Concat", *parts, axis=1, result="features")

    def _pooled(self, whole: str, backbone: FrozenBackbone, i: int) -> str:
        """As ``Int8Backbone`` does it: a float32 sum of whole numbers below 2**24 is exact."""
        from onnx import TensorProto

        module = backbone.module
        axes = self._constant(np.array([2, 3], np.int64))
        total = self._node("ReduceSum", self._float(whole), axes, keepdims=0)
        centered = self._centered(total, module.pool_center[i].numpy().astype(np.float32))
        scaled = self._node("Mul", centered, self._constant(module.pool_multiplier[i].numpy()))
        zero_point = self._constant(module.pool_zero_point[i].numpy().astype(np.float32))
        pooled = self._node("Add", self._node("Round", scaled), zero_point)
        limits = (self._constant(np.array(bound, np.float32)) for bound in (0, 255))
        return self._node("Cast", self._node("Clip", pooled, *limits), to=TensorProto.UINT8)

    def head(self, features: str, affine: Affine, head: Head) -> str:
        x = self._centered(self._float(features), affine.center)
        x = self._node("Mul", x, self._constant(affine.gain))
        weight, bias = self._constant(head.weight), self._constant(head.bias)
        return self._node("Gemm", x, weight, bias, transB=1, result="logits")

    def _step(self, step: Step, inputs: list[str], input_scale: float) -> str:
        if step.convolution is not None:
            value = self._convolution(step.convolution, inputs[0], input_scale)
            return self._node("Relu", value) if step.kind == "conv_relu" else value
        if step.kind == "hardsigmoid":
            return self._node("HardSigmoid", *inputs, alpha=1 / 6, beta=0.5)
        if step.kind == "turn":
            return self._turned(*inputs)
        names = {"add": "Add", "mul": "Mul", "hardswish": "HardSwish", "pool": "GlobalAveragePool"}
        return self._node(names[step.kind], *inputs)

    def _turned(self, value: str) -> str:
        """Reverse both spatial axes: from their last position to the one before their first."""
        ranges = ([-1, -1], [np.iinfo(np.int64).min] * 2, [2, 3], [-1, -1])
        return self._node("Slice", value, *(self._constant(np.array(r, np.int64)) for r in ranges))

    def _convolution(self, conv: Convolution, value: str, input_scale: float) -> str:
        middle = np.full(len(conv.bias), _MIDDLE, np.uint8)
        unsigned = (conv.weight.astype(np.int16) + _MIDDLE).astype(np.uint8)
        weight = self._dequantized(unsigned, conv.weight_scales, middle)
        # The scale of the sums, which are integers and need no rounding.
        steps = (conv.weight_scales * np.float32(input_scale)).astype(np.float32)
        # Torch rounds the biases in these words, too.
        whole = np.rint(conv.bias * (np.float32(1) / steps)).astype(np.int32)
        bias = self._dequantized(whole, steps, np.zeros(len(steps), np.int32))
        return self._node(
            "Conv", value, weight, bias,
            strides=conv.stride, pads=conv.padding * 2, group=conv.groups,
        )  # fmt: skip

    def _dequantized(self, whole: Array, scales: Array, zero_points: Array) -> str:
        values = [self._constant(array) for array in (whole, scales, zero_points)]
        return self._node("DequantizeLinear", *values, axis=0)

    def _whole(self, value: str, scale: float, zero_point: int) -> str:
        return self._node("QuantizeLinear", value, *self._step_size(scale, zero_point))

    def _real(self, whole: str, scale: float, zero_point: int) -> str:
        return self._node("DequantizeLinear", whole, *self._step_size(scale, zero_point))

    def _step_size(self, scale: float, zero_point: int) -> tuple[str, str]:
        return (
            self._constant(np.array(scale, np.float32)),
            self._constant(np.array(zero_point, np.uint8)),
        )

    def _float(self, value: str) -> str:
        from onnx import TensorProto

        return self._node("Cast", value, to=TensorProto.FLOAT)

    def _centered(self, value: str, center: Array) -> str:
        return self._node("Sub", value, self._constant(center))

    def _constant(self, array: Array) -> str:
        from onnx import numpy_helper

        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def _node(self, kind: str, *inputs: str, result: str = "", **attributes: Any) -> str:
        from onnx import helper

        result = result or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [result], **attributes))
        return result
