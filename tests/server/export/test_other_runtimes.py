"""ONNX Runtime and ExecuTorch: the same network, and the same bits."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import server.export.other_runtime
import server.export.targets.onnx
from common.backbone.engine import quantized_engine
from common.errors import ExportError, MissingExtraError
from common.machine import processor
from common.types import Head
from server.export.card import Card
from server.export.exporters import export
from server.export.float_network import Step, _Recorder, recorded
from server.export.targets.executorch import StandardModel, executorch_file
from server.export.targets.onnx import onnx_file

pytestmark = pytest.mark.wide

# Other networks' weights cannot be had offline.
NETWORKS = {
    "mobilenet_v2": "imagenet",
    "mobilenet_v3_large": "random",
    "mobilenet_v3_small": "random",
    "efficientnet_lite0": "imagenet",
}


# Of networks of the same kind of layers one is enough for the fast tier.
SLOW = {"mobilenet_v3_large"}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in NETWORKS
    ],
)
def any_trained(request, make_trained):
    return make_trained(request.param, NETWORKS[request.param], 64)


@pytest.fixture(scope="module")
def pretrained(make_trained):
    return make_trained("mobilenet_v2", "imagenet", 64)


def real_result(step: Step, inputs: list[torch.Tensor]) -> torch.Tensor:
    """What a step computes before it rounds, in float64."""
    conv = step.convolution
    if conv is not None:
        scales = torch.from_numpy(conv.weight_scales).double()[:, None, None, None]
        weight = torch.from_numpy(conv.weight) * scales
        bias = torch.from_numpy(conv.bias).double()
        out = torch.conv2d(inputs[0], weight, bias, conv.stride, conv.padding, 1, conv.groups)
        return out.relu() if step.kind == "conv_relu" else out
    functions: dict[str, Callable[..., torch.Tensor]] = {
        "add": torch.add,
        "mul": torch.mul,
        "pool": lambda x: x.mean((2, 3), keepdim=True),
        "hardswish": torch.nn.functional.hardswish,
        "hardsigmoid": torch.nn.functional.hardsigmoid,
        "turn": lambda x: x.flip(2, 3),
    }
    return functions[step.kind](*inputs)


def test_each_recorded_step_is_what_the_engine_computes(any_trained):
    module = any_trained.backbone.module
    images = torch.from_numpy(any_trained.images[:8].copy())
    x = (images.float() - module.mean) / module.std
    with quantized_engine("qnnpack"), torch.no_grad(), _Recorder() as recorder:
        module.body(module.quant(x))
    real = [result.dequantize().double() for result in recorder.results]
    assert len(recorder.steps) == len(real) - 1 >= 52
    for step, result in zip(recorder.steps, recorder.results[1:], strict=True):
        out = real_result(step, [real[i] for i in step.inputs])
        q = torch.clamp(torch.round(out / step.scale) + step.zero_point, 0, 255)
        off = (q - result.int_repr()).abs()
        # A tie may be rounded either way, and tables of hardswish by a step.
        assert off.max() <= 1, step.kind
        assert off.mean() < 0.5, step.kind


def test_every_bias_fits_the_int32_that_it_is_added_in(any_trained):
    # EfficientNet-Lite0 has channels that died in training and are all bias.
    network = recorded(any_trained.backbone)
    scales = [network.input_scale, *(step.scale for step in network.steps)]
    for step in network.steps:
        if (conv := step.convolution) is not None:
            steps = conv.weight_scales.astype(np.float64) * scales[step.inputs[0]]
            assert np.abs(conv.bias / steps).max() < 2**31 - 1


def test_standard_operators_give_the_trained_logits(any_trained):
    """Torch computes them with float sums, whose order changes a tie now and then."""
    model = StandardModel(any_trained.backbone, any_trained.head).eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(any_trained.images.copy())).numpy()
    # Random networks magnify each rounding, and their heads know half of the digits: classes
    # that are nearly tied may change. How many depends on the processor's float kernels.
    least = 0.95 if any_trained.backbone.spec.weights != "random" else 0.8
    assert np.corrcoef(logits.ravel(), any_trained.logits.ravel())[0, 1] > least


# ONNX


def test_an_onnx_file_agrees_in_its_own_runtime_and_its_card_says_how(any_trained, tmp_path):
    pytest.importorskip("onnxruntime")
    report = export(any_trained, "onnx", tmp_path / "model.onnx")
    card = Card.model_validate_json((tmp_path / "model.onnx.json").read_text())
    assert report.argmax_agreement == 1
    assert card.engine.startswith("onnxruntime ")
    assert card.file is not None
    assert card.file.within_rounding
    assert card.file.bytes == (tmp_path / "model.onnx").stat().st_size
    assert card.self_check is not None
    assert card.self_check.images == len(any_trained.images)


def test_the_lines_on_an_onnx_card_run(pretrained, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    export(pretrained, "onnx", tmp_path / "model.onnx")
    card = json.loads((tmp_path / "model.onnx.json").read_text())
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"images": pretrained.images}
    exec("\n".join(card["usage"]), names)
    assert names["logits"].shape == (len(pretrained.images), 10)


def test_onnx_weights_are_unsigned_because_signed_ones_overflow_on_old_processors(pretrained):
    onnx = pytest.importorskip("onnx")
    data = onnx_file(pretrained.backbone, pretrained.head)
    graph = onnx.load_from_string(data).graph
    arrays = {c.name: onnx.numpy_helper.to_array(c) for c in graph.initializer}
    made_by = {node.output[0]: node for node in graph.node}
    weights = [
        arrays[made_by[node.input[1]].input[0]] for node in graph.node if node.op_type == "Conv"
    ]
    assert len(weights) == 52
    assert {w.dtype for w in weights} == {np.dtype(np.uint8)}


def test_the_same_model_gives_the_same_onnx_bytes(pretrained):
    pytest.importorskip("onnx")
    first, second = (onnx_file(pretrained.backbone, pretrained.head) for _ in range(2))
    assert first == second


def patched_head(monkeypatch, head):
    monkeypatch.setattr(
        server.export.targets.onnx, "onnx_file", lambda backbone, _: onnx_file(backbone, head)
    )


def test_an_onnx_file_that_gives_other_classes_is_told_and_its_card_says_so(
    any_trained, tmp_path, monkeypatch, caplog
):
    pytest.importorskip("onnxruntime")
    caplog.set_level("WARNING", "fedhead")
    head = any_trained.head
    patched_head(monkeypatch, Head(np.roll(head.weight, 1, axis=0), head.bias))
    report = export(any_trained, "onnx", tmp_path / "model.onnx")
    card = Card.model_validate_json((tmp_path / "model.onnx.json").read_text())
    assert card.self_check is not None
    assert card.self_check.argmax_agreement == report.argmax_agreement
    assert card.self_check.argmax_agreement < 0.5
    assert card.file is not None
    assert card.file.processor == processor()
    (line,) = caplog.messages
    assert "model.onnx: onnxruntime" in line
    assert "images another class" in line


def test_an_onnx_file_that_gives_no_numbers_is_not_put_in_place(pretrained, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    head = pretrained.head
    patched_head(monkeypatch, Head(head.weight * np.float32("nan"), head.bias))
    with pytest.raises(ExportError, match="logits are not finite"):
        export(pretrained, "onnx", tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("target", "package", "extra"),
    [
        ("onnx", "onnx", "onnx"),
        ("onnx", "onnxruntime", "onnx"),
        ("executorch", "executorch", "executorch"),
        ("device-pte", "executorch", "executorch"),
    ],
)
def test_a_runtime_that_is_not_installed_is_named_with_its_command(
    trained, tmp_path, monkeypatch, target, package, extra
):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        server.export.other_runtime,
        "find_spec",
        lambda name: None if name == package else find(name),
    )
    with pytest.raises(MissingExtraError, match=rf"'{package}'.* pip install 'fedhead\[{extra}\]'"):
        export(trained, target, tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_without_a_head_an_onnx_file_gives_the_backbones_features_to_the_bit(any_trained):
    onnxruntime = pytest.importorskip("onnxruntime")
    data = onnx_file(any_trained.backbone, None)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    features = session.run(["features"], {"images": any_trained.images})[0]
    own = any_trained.features[: len(any_trained.images)]
    assert features.dtype == own.dtype
    assert np.array_equal(features, own)


def test_a_file_of_other_features_is_not_within_rounding(any_trained, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    features = any_trained.features.copy()
    features[0, :5] ^= 1
    other = dataclasses.replace(any_trained, features=features)
    export(other, "onnx", tmp_path / "model.onnx")
    card = Card.model_validate_json((tmp_path / "model.onnx.json").read_text())
    assert card.file is not None
    assert card.file.within_rounding is False


# ExecuTorch


def test_without_a_head_standard_operators_give_the_backbones_features(pretrained):
    model = StandardModel(pretrained.backbone, None).eval()
    with torch.no_grad():
        q = model(torch.from_numpy(pretrained.images[:8].copy())).numpy()
    off = np.abs(q - pretrained.features[:8].astype(np.float32))
    assert np.array_equal(q, q.astype(np.uint8))
    assert off.mean() < 2  # of 255: torch's float sums round a tie now and then


@pytest.mark.slow
def test_without_a_head_an_executorch_file_gives_the_backbones_features_to_the_bit(
    any_trained, tmp_path
):
    pytest.importorskip("executorch")
    (tmp_path / "features.pte").write_bytes(executorch_file(any_trained.backbone, None))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says of itself that it is experimental
        import executorch.kernels.quantized  # noqa: F401  # what is not in the core runtime
        from executorch.runtime import Runtime

    method = Runtime.get().load_program(tmp_path / "features.pte").load_method("forward")
    images = torch.from_numpy(any_trained.images.copy()).split(1)
    q = torch.cat([method.execute([image])[0].clone() for image in images]).numpy()
    assert np.array_equal(q, any_trained.features[: len(q)])


@pytest.mark.slow
def test_an_executorch_file_agrees_in_its_own_runtime(any_trained, tmp_path):
    pytest.importorskip("executorch")
    report = export(any_trained, "executorch", tmp_path / "model.pte")
    card = Card.model_validate_json((tmp_path / "model.pte.json").read_text())
    assert report.argmax_agreement == 1
    assert card.engine.startswith("executorch ")
    assert card.file is not None
    assert card.file.within_rounding
    # A file of float weights would be four times as large.
    assert report.model_bytes < 2 * sum(
        step.convolution.weight.size
        for step in recorded(any_trained.backbone).steps
        if step.convolution is not None
    )
