"""From a folded float network to the int8 ones that follow it, on unlabelled images."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from common.backbone._deprecations import accepted_deprecations
from common.backbone.equalize import equalized
from common.backbone.frozen import UInt8Array
from common.backbone.quantize import (
    Converted,
    calibrate,
    convert,
    correct_bias,
    distill,
    prepare_student,
)
from common.progress import track
from common.seeding import Purpose, permutation

__all__ = [
    "Normalization",
    "Quantized",
    "distillation_batches",
    "pooled",
    "quantized",
]

_DISTILL_BATCH = 16
_BATCH = 32
_CALIBRATION_IMAGES = 256
_CORRECTION_IMAGES = 64

_log = logging.getLogger("fedhead")


@dataclass(frozen=True)
class Normalization:
    """How pixels become what a pretrained network expects.

    Attributes:
        mean: of red, green and blue, in [0, 1].
        std: likewise, above 0.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, images: UInt8Array) -> Tensor:
        """uint8 (n, 3, S, S) to float32."""
        mean = torch.tensor(self.mean).mul(255).reshape(1, 3, 1, 1)
        std = torch.tensor(self.std).mul(255).reshape(1, 3, 1, 1)
        return (torch.from_numpy(np.ascontiguousarray(images)).float() - mean) / std

    def batches(self, images: UInt8Array) -> Iterator[Tensor]:
        """All images in their order, normalized."""
        for start in range(0, len(images), _BATCH):
            yield self(images[start : start + _BATCH])


@dataclass(frozen=True)
class Quantized:
    """One network in int8 twice.

    Attributes:
        post_training: its channels equalized, calibrated, its biases corrected.
        trained: the same after quantization-aware distillation, or the one before where that
            follows the float network more closely.
    """

    post_training: Converted
    trained: Converted


def quantized(
    folded: nn.Module,
    teacher: nn.Module,
    *,
    engine: str,
    steps: int,
    lr: float,
    sample: UInt8Array,
    images: UInt8Array,
    normalization: Normalization,
    seed: int,
) -> Quantized:
    """Quantize a network; the engine must be set around this call.

    Nine parameters: a bundle would only rename them.

    Args:
        folded: to quantize; not changed.
        teacher: whose pooled features it is to give: itself, or what it was made from.
        engine: quantized engine it is converted for.
        steps: of distillation; with 0 both networks are the same.
        lr: peak learning rate of the distillation.
        sample: uint8 (m, 3, S, S), to calibrate and to choose on.
        images: uint8 (n, 3, S, S), to distil on.
        normalization: of both.
        seed: of their order.
    """
    # Module constructors of torch.ao draw random weights, only to replace them.
    with torch.random.fork_rng(devices=[]):
        alike = equalized(folded, normalization.batches(sample[:_CALIBRATION_IMAGES]))
        student = prepare_student(alike, engine)
        calibrate(student, normalization.batches(sample[:_CALIBRATION_IMAGES]))
        correct_bias(student, alike, normalization(sample[:_CORRECTION_IMAGES]))
        first = convert(student)
        if not steps:
            return Quantized(first, first)
        losses = distill(
            student,
            lambda batch: pooled(teacher, batch),
            distillation_batches(images, normalization, steps, seed),
            steps=steps,
            lr=lr,
        )
        _log.debug("distillation: loss %.4f to %.4f", losses[0], losses[-1])
        networks = [first, convert(student)]
        return Quantized(first, _closest(networks, teacher, normalization.batches(sample)))


def pooled(network: nn.Module, batch: Tensor) -> Tensor:
    """Float features (b, d) of normalized images (b, 3, H, W)."""
    features: Tensor = network(batch).mean((2, 3))
    return features


def _closest(networks: list[Converted], teacher: nn.Module, batches: Iterable[Tensor]) -> Converted:
    """The int8 network whose pooled features differ least from the float ones.

    Rounding errors of a whole network are erratic: where post-training quantization happens to
    do very well, some steps of training can end a little behind it.
    """
    errors = [0.0] * len(networks)
    with torch.inference_mode(), accepted_deprecations():
        for batch in batches:
            want = pooled(teacher, batch)
            for i, network in enumerate(networks):
                got = network.body(network.quant(batch)).dequantize().mean((2, 3))
                errors[i] += float((got - want).square().sum())
    return networks[int(np.argmin(errors))]


def distillation_batches(
    images: UInt8Array, normalization: Normalization, steps: int, seed: int
) -> Iterator[Tensor]:
    """Normalized batches in an order that is drawn anew for each pass over the images."""
    size = min(_DISTILL_BATCH, len(images))
    per_epoch = len(images) // size
    for step in track(range(steps), "Distilling", steps):
        epoch, position = divmod(step, per_epoch)
        order = permutation(len(images), seed, Purpose.DISTILLATION, epoch)
        yield normalization(images[order[position * size : (position + 1) * size]])
