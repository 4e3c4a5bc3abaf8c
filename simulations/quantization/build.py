"""Makes all files of one backbone: each mode, engine and runtime."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.ao.quantization as tq
from torch import Tensor, nn

from common.backbone._deprecations import accepted_deprecations
from common.backbone.assemble import assemble
from common.backbone.blocks import blocks_of
from common.backbone.frozen import UInt8Array, quantized_engine
from common.backbone.int8 import (
    Normalization,
    Quantized,
    distillation_batches,
    quantized,
)
from common.backbone.module import Tapped, num_layers
from common.backbone.networks import quantizable_network
from common.backbone.prepare import draft_spec, float_teacher
from common.backbone.quantize import Converted, distill, fold
from common.backbone.recipe import DISTILL_LR, Recipe
from common.backbone.weights import load_weights
from common.types import Affine
from server.export.other_runtime import is_installed
from server.export.targets.executorch import executorch_file, lowered
from server.export.targets.onnx import onnx_file
from simulations.bench.speed import Runtime
from simulations.quantization.files import (
    FloatBackbone,
    float_onnx_file,
    lite_file,
    torchscript_file,
)
from simulations.quantization.prune import pruned

__all__ = ["FP16", "FP32", "POST_TRAINING", "QAT", "Candidate", "Task", "build", "engines"]

FP32, QAT = "fp32", "QAT int8"
FP16, _DYNAMIC, POST_TRAINING = "fp16", "dynamic int8", "PTQ int8"
_RATES = (0.5, 0.75)
_PRUNING_STEPS = 100
_PRUNING_LR = 2e-4
_DISTILL_STEPS = 40
_PHONE = "qnnpack"  # other runtimes get this engine's int8 network
_SUFFIX = {"torchscript": ".pt", "lite": ".ptl", "onnx": ".onnx", "executorch": ".pte"}


@dataclass(frozen=True)
class Task:
    """The files to build for one backbone.

    Attributes:
        arch: see ``common.backbone.networks``.
        weights: see ``load_weights``.
        input_size: S, in pixels.
        normalization: the normalization that the weights were trained with.
        seed: seed of random weights and of the images' order.
        folder: folder for the files.
    """

    arch: str
    weights: str
    input_size: int
    normalization: Normalization
    seed: int
    folder: Path


@dataclass(frozen=True, eq=False)
class Candidate:
    """One file.

    Attributes:
        arch: the backbone's architecture.
        mode: the way in which it was made small.
        runtime: the runtime that runs it.
        engine: torch's quantized engine; "" for other runtimes.
        file: the file's path.
        affine: map from its result to features; None: its result is the features.
    """

    arch: str
    mode: str
    runtime: Runtime
    engine: str
    file: Path
    affine: Affine | None


def engines() -> list[str]:
    """This torch's quantized engines that are compared."""
    return [e for e in (_PHONE, "x86") if e in torch.backends.quantized.supported_engines]


def build(task: Task, images: UInt8Array) -> list[Candidate]:
    """Make all files; runtimes that are not installed are left out.

    Args:
        task: the files to build.
        images: uint8 (n, 3, S, S), unlabelled, to calibrate, prune and distil on.

    Returns:
        The files mode by mode; a file for the lite interpreter follows its TorchScript file.
    """
    candidates = list(_Builder(task, images).candidates())
    modes = list(dict.fromkeys(candidate.mode for candidate in candidates))
    return sorted(candidates, key=lambda candidate: modes.index(candidate.mode))


class _Builder:
    def __init__(self, task: Task, images: UInt8Array) -> None:
        self._task, self._images = task, images
        loaded = load_weights(task.arch, task.weights)
        recipe = Recipe(
            task.arch,
            task.weights,
            task.input_size,
            engine="",
            distill_steps=_DISTILL_STEPS,
            feature_scaling="none",
            seed=task.seed,
            mean=task.normalization.mean,
            std=task.normalization.std,
        )
        teacher = float_teacher(recipe, loaded, images)
        folded = fold(quantizable_network(task.arch, teacher))
        # Only the last layer's features can be compared with the float ones: equalization changes
        # the channels of inner blocks.
        self._blocks = blocks_of("gap", task.arch, num_layers(folded))
        self._draft = draft_spec(recipe, loaded, Tapped(teacher, self._blocks))
        self._folded = folded

    def candidates(self) -> Iterator[Candidate]:
        yield from self._floats()
        small = {rate: self._smaller(rate) for rate in _RATES}
        for engine in engines():
            with quantized_engine(engine):
                plain = self._quantized(self._folded, engine, _DISTILL_STEPS)
                yield from self._int8(POST_TRAINING, plain.post_training, engine)
                yield from self._int8(QAT, plain.trained, engine)
                for rate, network in small.items():
                    mode = f"{rate:.0%} pruned, {POST_TRAINING}"
                    made = self._quantized(network, engine, 0)
                    yield from self._int8(mode, made.post_training, engine)

    def _batches(self) -> Iterator[Tensor]:
        return self._task.normalization.batches(self._images)

    def _floats(self) -> Iterator[Candidate]:
        plain = FloatBackbone(Tapped(self._folded, self._blocks), self._task.normalization).eval()
        yield from self._torch(FP32, "", plain, None)
        other: dict[Runtime, Callable[[nn.Module, int], bytes]] = {
            "onnx": float_onnx_file,
            "executorch": lowered,
        }
        for runtime, write in other.items():
            if is_installed(runtime):
                yield self._written(FP32, runtime, "", write(plain, self._task.input_size))
        yield from self._torch(FP16, "", copy.deepcopy(plain).half(), None)
        with accepted_deprecations():
            dynamic = tq.quantize_dynamic(plain, {nn.Linear})  # type: ignore[no-untyped-call]
        yield from self._torch(_DYNAMIC, "", dynamic, None)

    def _smaller(self, rate: float) -> nn.Module:
        """The pruned network, distilled from the unpruned one."""
        network = pruned(self._folded, rate, self._batches()).requires_grad_(True)
        distill(
            Tapped(network, self._blocks),
            Tapped(self._folded, self._blocks),
            distillation_batches(
                self._images, self._task.normalization, _PRUNING_STEPS, self._task.seed
            ),
            steps=_PRUNING_STEPS,
            lr=_PRUNING_LR,
        )
        return network.requires_grad_(False)

    def _quantized(self, network: nn.Module, engine: str, steps: int) -> Quantized:
        return quantized(
            network,
            self._blocks,
            engine=engine,
            steps=steps,
            lr=DISTILL_LR,
            sample=self._images,
            images=self._images,
            normalization=self._task.normalization,
            seed=self._task.seed,
        )

    def _int8(self, mode: str, network: Converted, engine: str) -> Iterator[Candidate]:
        draft = dataclasses.replace(self._draft, engine=engine)
        backbone = assemble(network, draft, self._batches())
        yield from self._torch(mode, engine, backbone.module, backbone.affine)
        if engine != _PHONE:
            return
        if is_installed("onnx"):
            yield self._written(mode, "onnx", "", onnx_file(backbone, None), backbone.affine)
        # Lowering for ExecuTorch takes longest, so it is done only for the exported network.
        if mode == QAT and is_installed("executorch"):
            data = executorch_file(backbone, None)
            yield self._written(mode, "executorch", "", data, backbone.affine)

    def _torch(
        self, mode: str, engine: str, module: nn.Module, affine: Affine | None
    ) -> Iterator[Candidate]:
        yield self._written(mode, "torchscript", engine, torchscript_file(module), affine)
        yield self._written(mode, "lite", engine, lite_file(module), affine)

    def _written(
        self, mode: str, runtime: Runtime, engine: str, data: bytes, affine: Affine | None = None
    ) -> Candidate:
        name = re.sub("[^a-z0-9]+", "-", f"{self._task.arch} {mode} {engine}".lower()).strip("-")
        file = self._task.folder / f"{name}{_SUFFIX[runtime]}"
        file.write_bytes(data)
        return Candidate(self._task.arch, mode, runtime, engine, file, affine)
