"""Lines for cards that load an exported file, in the languages of the machines that run it."""

from __future__ import annotations

from collections.abc import Mapping

from common.backbone.spec import BackboneSpec

__all__ = ["FILES", "PREDICT_ONLY", "elsewhere", "python"]

FILES = {
    "model": "model.pt",
    "device": "device.pt",
    "lite": "device.ptl",
    "onnx": "model.onnx",
    "executorch": "model.pte",
    "device-pte": "device.pte",
    "head": "device-head.safetensors",
}
"""Each target's file name."""

PREDICT_ONLY = frozenset({"model", "onnx", "executorch"})
"""Targets whose logits are divided by the temperature: nothing trains on from their heads."""

# LibTorch has no Swift interface.
_OBJECTIVE_CPP = "// in an Objective-C++ file that Swift calls:"

_PYTHON = {
    "model": (
        'import torch; torch.backends.quantized.engine = "{engine}"  # before loading',
        'model = torch.jit.load("{file}")',
        "probabilities = model(images).softmax(1)  # images: {images}, RGB",
    ),
    "device": (
        'import torch; torch.backends.quantized.engine = "{engine}"  # before loading',
        'model = torch.jit.load("{file}")',
        "features = model.features(images)  # images: {images}, RGB",
        "losses = model.train_epochs(features, labels, 0.05, 5, 10, seed)",
        "delta = model.head_delta()",
    ),
    "lite": (
        'import torch; torch.backends.quantized.engine = "{engine}"  # before loading',
        "from torch.jit.mobile import _load_for_lite_interpreter as load",
        'model = load("{file}")',
        'features = model.run_method("features", images)  # images: {images}, RGB',
        'losses = model.run_method("train_epochs", features, labels, 0.05, 5, 10, seed)',
        'delta = model.run_method("head_delta")',
    ),
    "onnx": (
        "import onnxruntime",
        'model = onnxruntime.InferenceSession("{file}")',
        'logits = model.run(None, {{"images": images}})[0]  # images: {images}, RGB',
    ),
    "executorch": (
        "from executorch.runtime import Runtime",
        'method = Runtime.get().load_program("{file}").load_method("forward")',
        "logits = method.execute([image])[0]  # image: uint8 (1, 3, {size}, {size}), RGB",
    ),
    "device-pte": (
        "import torch, executorch.kernels.quantized",
        "from executorch.runtime import Runtime",
        'program = Runtime.get().load_program("{file}")',
        'features = program.load_method("features").execute([image])[0].clone()',
        'matrix = program.load_method("head").execute([])[0].clone()',
        "zeros = [torch.zeros_like(matrix) for _ in range(2)]  # velocity, correction",
        "settings = torch.tensor([0.05, 0, 0, 0, 0])  # lr, momentum, decay, mu, unit norm",
        "inputs = [features, labels, matrix, zeros[0], matrix.clone(), zeros[1], settings]",
        'matrix, velocity, loss = program.load_method("train_step").execute(inputs)',
    ),
    "head": (
        "from safetensors.torch import load_file",
        'head = load_file("{file}")',
        'device.set_head(head["weight"], head["bias"], fingerprint)  # device.pt or device.ptl',
    ),
}

_CPP = {
    "model": (
        "at::globalContext().setQEngine(at::QEngine::QNNPACK);  // before loading",
        'auto model = torch::jit::load("{file}");',
        "auto logits = model.forward({{images}}).toTensor();",
    ),
    "device": (
        "at::globalContext().setQEngine(at::QEngine::QNNPACK);  // before loading",
        'auto model = torch::jit::load("{file}");',
        'auto features = model.get_method("features")({{images}});',
    ),
    "lite": (
        "at::globalContext().setQEngine(at::QEngine::QNNPACK);  // before loading",
        'auto model = torch::jit::_load_for_mobile("{file}");',
        'auto features = model.get_method("features")({{images}});',
    ),
    "onnx": ('Ort::Session model(env, "{file}", Ort::SessionOptions{{}});',),
    "executorch": (
        'executorch::extension::Module model("{file}");',
        "auto logits = model.forward(image);",
    ),
    "device-pte": (
        'executorch::extension::Module model("{file}");',
        'auto features = model.execute("features", image);',
    ),
    "head": (
        'device.get_method("set_head")({{weight, bias, fingerprint}});  // see client/native',
    ),
}

_KOTLIN = {
    "model": (
        'val model = org.pytorch.Module.load("{file}")  // pytorch_android',
        "val image = Tensor.fromBlobUnsigned(pixels, longArrayOf(1, 3, {size}, {size}))",
        "val logits = model.forward(IValue.from(image)).toTensor().dataAsFloatArray",
    ),
    "device": ('val model = org.pytorch.Module.load("{file}")  // pytorch_android',),
    "lite": (
        'val model = org.pytorch.LiteModuleLoader.load("{file}")  // pytorch_android_lite',
        'val features = model.runMethod("features", IValue.from(images))  // see client/android',
    ),
    "onnx": ('val model = OrtEnvironment.getEnvironment().createSession("{file}")',),
    "executorch": (
        'val model = org.pytorch.executorch.Module.load("{file}")',
        "val logits = model.forward(EValue.from(image))[0].toTensor().dataAsFloatArray",
    ),
    "device-pte": (
        'val model = org.pytorch.executorch.Module.load("{file}")',
        'val features = model.execute("features", EValue.from(image))[0].toTensor()',
    ),
    "head": ('model.runMethod("set_head", weight, bias, IValue.from(fingerprint))',),
}

_SWIFT = {
    "model": (_OBJECTIVE_CPP, *_CPP["model"]),
    "device": (_OBJECTIVE_CPP, *_CPP["device"]),
    "lite": (_OBJECTIVE_CPP, *_CPP["lite"]),
    "onnx": ('let model = try ORTSession(env: env, modelPath: "{file}", sessionOptions: nil)',),
    "executorch": (
        'let model = ExecuTorch.Module(filePath: "{file}")',
        "let logits = try model.forward(image)",
    ),
    "device-pte": (
        'let model = ExecuTorch.Module(filePath: "{file}")',
        'let features = try model.execute("features", image)',
    ),
    "head": (_OBJECTIVE_CPP, *_CPP["head"]),
}


def python(target: str, spec: BackboneSpec) -> tuple[str, ...]:
    """Lines of Python."""
    return _filled(_PYTHON, target, spec)


def elsewhere(target: str, spec: BackboneSpec) -> dict[str, tuple[str, ...]]:
    """Lines of C++, Kotlin and Swift."""
    languages = {"c++": _CPP, "kotlin": _KOTLIN, "swift": _SWIFT}
    return {name: _filled(lines, target, spec) for name, lines in languages.items()}


def _filled(
    lines: Mapping[str, tuple[str, ...]], target: str, spec: BackboneSpec
) -> tuple[str, ...]:
    size = spec.input_size
    images = f"uint8 (n, 3, {size}, {size})"
    return tuple(
        line.format(file=FILES[target], engine=spec.engine, images=images, size=size)
        for line in lines[target]
    )
