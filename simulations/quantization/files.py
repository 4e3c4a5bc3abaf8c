"""A backbone as a file for each runtime: uint8 images in, pooled features out."""

# No "from __future__ import annotations": TorchScript reads the attributes' types.
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.backbone._deprecations import accepted_deprecations
from common.backbone.int8 import IMAGENET_MEAN, IMAGENET_STD
from common.backbone.quantize import Converted

__all__ = [
    "EXTRAS",
    "DequantizedBackbone",
    "FloatBackbone",
    "executorch_file",
    "executorch_int8_file",
    "int8_onnx_file",
    "lite_file",
    "missing_runtimes",
    "onnx_file",
    "torchscript_file",
]

# 17 is from 2022; nothing newer is needed.
_OPSET = 17
_CALIBRATION = 64
_MIDDLE = 128

EXTRAS = {"onnx": ("onnx", "onnxruntime"), "executorch": ("executorch",)}
"""Packages that a runtime needs, by runtime; the extra has the runtime's name."""


def missing_runtimes() -> list[str]:
    """Runtimes that are not installed."""
    return [name for name, packages in EXTRAS.items() if not all(map(find_spec, packages))]


class FloatBackbone(nn.Module):
    """Normalization, a network of floats and pooling in one module, in the network's own type."""

    mean: Tensor
    std: Tensor

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).mul(255).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).mul(255).reshape(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (n, 3, H, W) to float (n, d)."""
        x = (images.to(self.mean.dtype) - self.mean) / self.std
        pooled: Tensor = self.features(x).mean([2, 3])
        return pooled


class DequantizedBackbone(FloatBackbone):
    """The int8 network with its pooling in floats, as other runtimes have it."""

    def __init__(self, network: Converted) -> None:
        super().__init__(nn.Sequential(network.quant, network.body, _Dequantize()))


class _Dequantize(nn.Module):
    def forward(self, q: Tensor) -> Tensor:
        return q.dequantize()


def torchscript_file(module: nn.Module) -> bytes:
    """``.pt``; a scripted module is saved as it is."""
    buffer = io.BytesIO()
    with accepted_deprecations():
        torch.jit.save(torch.jit.script(module), buffer)
    return buffer.getvalue()


def lite_file(module: nn.Module) -> bytes:
    """``.ptl``, for the lite interpreter."""
    with accepted_deprecations():
        data: bytes = torch.jit.script(module)._save_to_buffer_for_lite_interpreter()  # type: ignore[no-untyped-call]
    return data


def onnx_file(module: nn.Module, image: Tensor) -> bytes:
    """``.onnx``, any number of images; traced with uint8 (1, 3, H, W)."""
    buffer = io.BytesIO()
    any_number = {"images": {0: "n"}, "features": {0: "n"}}
    with _own_warnings(), torch.no_grad():
        torch.onnx.export(
            module,
            (image,),
            buffer,  # type: ignore[arg-type]  # this exporter takes it
            dynamo=False,  # the other exporter cannot write a converted network
            opset_version=_OPSET,
            input_names=["images"],
            output_names=["features"],
            dynamic_axes=any_number,
        )
    return buffer.getvalue()


def int8_onnx_file(network: Converted, image: Tensor) -> bytes:
    """The converted network as ONNX's QDQ; its engine must be set around this call."""
    return _with_unsigned_weights(onnx_file(DequantizedBackbone(network).eval(), image))


def _with_unsigned_weights(data: bytes) -> bytes:
    """The same numbers with uint8 weights around 128 in place of int8 ones around 0.

    On x86 without VNNI, ONNX Runtime adds pairs of uint8 x int8 products in 16 bits, which
    overflow (cosine to the same network in torch 0.38); uint8 weights it multiplies exactly.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load_from_string(data)
    constants = {node.output[0]: node for node in model.graph.node if node.op_type == "Constant"}
    for node in model.graph.node:
        weight = constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if weight is None:
            continue
        values = numpy_helper.to_array(weight.attribute[0].t)
        if values.dtype != np.int8:
            continue
        unsigned = (values.astype(np.int16) + _MIDDLE).astype(np.uint8)
        weight.attribute[0].t.CopyFrom(numpy_helper.from_array(unsigned))
        middle = np.full(len(values), _MIDDLE, np.uint8)  # of each channel
        name = f"{node.input[0]}_middle"
        model.graph.initializer.append(numpy_helper.from_array(middle, name))
        node.input[2] = name
    _drop_unused(model.graph)
    result: bytes = model.SerializeToString(deterministic=True)
    return result


def _drop_unused(graph: Any) -> None:
    """Remove nodes that nothing reads; ONNX Runtime warns of each."""
    used = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
    unused = [node for node in graph.node if not used & set(node.output)]
    for node in unused:
        graph.node.remove(node)
    if unused:
        _drop_unused(graph)


def executorch_file(module: nn.Module, image: Tensor) -> bytes:
    """``.pte`` for XNNPACK, one image a call."""
    with _own_warnings(), torch.no_grad():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        program = torch.export.export(module, (image,))
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        data: bytes = lowered.to_executorch().buffer
    return data


def executorch_int8_file(module: nn.Module, images: Tensor) -> bytes:
    """The same after ExecuTorch's own post-training quantization, int8 weights per channel.

    Args:
        module: float, uint8 (1, 3, H, W) in.
        images: uint8 (n, 3, H, W), to calibrate on.
    """
    with _own_warnings(), torch.no_grad():
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
            XNNPACKQuantizer,
            get_symmetric_quantization_config,
        )
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        quantizer = XNNPACKQuantizer()
        quantizer.set_global(get_symmetric_quantization_config(is_per_channel=True))
        graph = torch.export.export(module, (images[:1],)).module()
        prepared = prepare_pt2e(graph, quantizer)
        for image in torch.split(images[:_CALIBRATION], 1):
            prepared(image)
        converted = convert_pt2e(prepared)
    return executorch_file(converted, images[:1])


@contextmanager
def _own_warnings() -> Iterator[None]:
    """Keep what exporters say about themselves, on import too, from the user."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
