"""What quantization costs: float, post-training int8 and QAT int8 on the same images."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from common.backbone._deprecations import accepted_deprecations
from common.backbone.frozen import FrozenBackbone, UInt8Array, quantized_engine
from common.backbone.networks import float_network, random_network
from common.backbone.prepare import normalize, prepare_backbone
from common.backbone.weights import load_weights
from common.datasets import load_dataset
from common.progress import track
from common.seeding import Purpose, permutation
from common.types import FloatArray, IntArray

__all__ = ["QuantizationRow", "measure_mnist5k", "measure_quantization", "render"]

_ENGINES = ("qnnpack", "x86")
_MODES = {"post-training int8": 0, "QAT int8": 40}
_ARCH = "mobilenet_v2"
_BATCH = 50
_LATENCY_SIZE = 224
_LATENCY_RUNS = 15
_WARMUP_RUNS = 3


@dataclass(frozen=True)
class QuantizationRow:
    """One line of the table.

    Attributes:
        mode: "fp32", "post-training int8" or "QAT int8".
        engine: quantized engine, "" for fp32.
        accuracy: of ridge heads over five folds, in [0, 1].
        cosine: mean cosine of an image's features to the float ones.
        file_bytes: of the saved TorchScript backbone.
        latency_ms: median for one image of 224 px on one thread.
    """

    mode: str
    engine: str
    accuracy: float
    cosine: float
    file_bytes: int
    latency_ms: float


def measure_quantization(
    images: Callable[[int], UInt8Array],
    labels: IntArray,
    *,
    seed: int,
    input_size: int = 96,
    weights: str = "imagenet",
) -> list[QuantizationRow]:
    """Measure MobileNetV2 in every mode and on every engine; minutes of work.

    Args:
        images: input size to uint8 (n, 3, size, size), RGB.
        labels: int64 (n,).
        seed: of folds, calibration and distillation.
        input_size: at which features, cosine and accuracy are measured.
        weights: see ``load_weights``.
    """
    at_size, large = images(input_size), images(_LATENCY_SIZE)[:_BATCH]
    state = load_weights(_ARCH, weights).state
    teacher = random_network(_ARCH, seed) if state is None else float_network(_ARCH, state)
    reference = _float_features(teacher, at_size)
    rows = [_float_row(teacher, reference, labels, large, seed)]
    for engine in (e for e in _ENGINES if e in torch.backends.quantized.supported_engines):
        prepare = partial(
            prepare_backbone,
            arch=_ARCH,
            weights=weights,
            engine=engine,
            feature_scaling="none",
            seed=seed,
        )
        # Latency does not depend on the weights' values: measured once for both modes.
        timed = prepare(images=large, input_size=_LATENCY_SIZE, distill_steps=0)
        latency_ms = _latency_ms(partial(timed.features, large[:1]))
        for mode, steps in _MODES.items():
            backbone = prepare(images=at_size, input_size=input_size, distill_steps=steps)
            features = _int8_features(backbone, at_size)
            accuracy = _ridge_accuracy(features, labels, seed=seed)
            cosine = _cosine(features, reference)
            rows.append(
                QuantizationRow(mode, engine, accuracy, cosine, _file_bytes(backbone), latency_ms)
            )
    return rows


def measure_mnist5k(seed: int) -> list[QuantizationRow]:
    """The same on all 5,000 images of the embedded default."""
    dataset = load_dataset(
        "mnist5k", root=None, download=False, strict=False, test_fraction=0.2, seed=seed
    )
    everything = np.arange(len(dataset))
    return measure_quantization(
        lambda size: dataset.images(
            everything if size < _LATENCY_SIZE else everything[:_BATCH], size
        ),
        dataset.labels,
        seed=seed,
    )


def render(rows: list[QuantizationRow]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| backbone | engine | ridge accuracy | cosine to fp32 | file | latency at 224 px |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.mode} | {row.engine or '-'} | {row.accuracy:.2%} | {row.cosine:.4f} "
        f"| {row.file_bytes / 1e6:.2f} MB | {row.latency_ms:.1f} ms |"
        for row in rows
    ]
    return "\n".join(lines)


class _FloatBackbone(nn.Module):
    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.features(images).mean(dim=[2, 3])
        return out


def _float_row(
    teacher: nn.Module,
    reference: FloatArray,
    labels: IntArray,
    large: UInt8Array,
    seed: int,
) -> QuantizationRow:
    with accepted_deprecations():
        script = torch.jit.script(_FloatBackbone(teacher).eval())
        buffer = io.BytesIO()
        torch.jit.save(script, buffer)
    image = normalize(large[:1])
    accuracy = _ridge_accuracy(reference, labels, seed=seed)
    latency_ms = _latency_ms(lambda: script(image))
    return QuantizationRow("fp32", "", accuracy, 1.0, len(buffer.getvalue()), latency_ms)


def _float_features(teacher: nn.Module, images: UInt8Array) -> FloatArray:
    starts = range(0, len(images), _BATCH)
    with torch.inference_mode():
        parts = [
            teacher(normalize(images[start : start + _BATCH])).mean((2, 3)).numpy()
            for start in track(starts, "Float features", len(starts))
        ]
    return np.concatenate(parts)


def _int8_features(backbone: FrozenBackbone, images: UInt8Array) -> FloatArray:
    """The uint8 features as trainers see them, without further scaling."""
    starts = range(0, len(images), _BATCH)
    with quantized_engine(backbone.spec.engine):
        parts = [
            backbone.features(images[start : start + _BATCH])
            for start in track(starts, "Int8 features", len(starts))
        ]
    return backbone.affine(np.concatenate(parts))


def _cosine(features: FloatArray, reference: FloatArray) -> float:
    products = (features * reference).sum(axis=1)
    norms = np.linalg.norm(features, axis=1) * np.linalg.norm(reference, axis=1)
    return float((products / np.maximum(norms, 1e-12)).mean())


def _file_bytes(backbone: FrozenBackbone) -> int:
    buffer = io.BytesIO()
    with quantized_engine(backbone.spec.engine), accepted_deprecations():
        torch.jit.save(backbone.module, buffer)
    return len(buffer.getvalue())


def _latency_ms(call: Callable[[], object]) -> float:
    """Median of several runs on one thread, after a warm-up."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            seconds = []
            for _ in range(_WARMUP_RUNS + _LATENCY_RUNS):
                start = time.perf_counter()
                call()
                seconds.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return 1000 * statistics.median(seconds[_WARMUP_RUNS:])


def _ridge_accuracy(
    x: FloatArray, labels: IntArray, *, seed: int, ridge: float = 10.0, folds: int = 5
) -> float:
    """Accuracy of ridge heads over folds; equal seeds give equal folds, so rows are paired."""
    design = np.concatenate([x, np.ones((len(x), 1))], axis=1, dtype=np.float64)
    targets = np.eye(int(labels.max()) + 1)[labels]
    gram, moments = design.T @ design, design.T @ targets
    penalty = ridge * np.eye(design.shape[1])
    penalty[-1, -1] = 1e-6  # the bias is free, but the matrix stays positive definite
    order = permutation(len(x), seed, Purpose.FOLDS)
    correct = 0
    for fold in range(folds):
        held_out = order[fold::folds]
        rows = design[held_out]
        # The other folds' statistics are all minus this one's.
        factor = np.linalg.cholesky(gram - rows.T @ rows + penalty)
        half = np.linalg.solve(factor, moments - rows.T @ targets[held_out])
        head = np.linalg.solve(factor.T, half)
        correct += int(((rows @ head).argmax(axis=1) == labels[held_out]).sum())
    return correct / len(x)
