"""From a folded float network to its int8 versions, on unlabelled images."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from common.backbone._deprecations import accepted_deprecations
from common.backbone.agreement import make_agree
from common.backbone.equalize import equalized
from common.backbone.frozen import UInt8Array
from common.backbone.module import Tapped, is_last
from common.backbone.quantize import (
    Converted,
    calibrate,
    convert,
    correct_bias,
    distill,
    pooled,
    prepare_student,
)
from common.progress import track
from common.seeding import Purpose, permutation

__all__ = [
    "Normalization",
    "Quantized",
    "distillation_batches",
    "quantized",
]

_DISTILL_BATCH = 16
_BATCH = 32
_CALIBRATION_IMAGES = 256
_CORRECTION_IMAGES = 64

_log = logging.getLogger("fedhead")


@dataclass(frozen=True)
class Normalization:
    """The normalization of pixels that a pretrained network expects.

    Attributes:
        mean: mean of red, green and blue, in [0, 1].
        std: standard deviation, likewise; above 0.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, images: UInt8Array) -> Tensor:
        """uint8 (n, 3, S, S) to float32."""
        mean, std = self.levels
        return (torch.from_numpy(np.ascontiguousarray(images)).float() - mean) / std

    @property
    def levels(self) -> tuple[Tensor, Tensor]:
        """Mean and std of pixels in [0, 255], float32 (1, 3, 1, 1) each."""
        mean = torch.tensor(self.mean).mul(255).reshape(1, 3, 1, 1)
        return mean, torch.tensor(self.std).mul(255).reshape(1, 3, 1, 1)

    def batches(self, images: UInt8Array) -> Iterator[Tensor]:
        """All images in their order, in normalized batches."""
        for start in range(0, len(images), _BATCH):
            yield self(images[start : start + _BATCH])


@dataclass(frozen=True)
class Quantized:
    """Two int8 versions of one network.

    Attributes:
        post_training: equalized, calibrated and with corrected biases.
        trained: the same after quantization-aware distillation; or ``post_training`` if that is
            closer to the float network.
    """

    post_training: Converted
    trained: Converted


def quantized(
    folded: nn.Module,
    blocks: Sequence[int],
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

    It has nine parameters, because a class for them would only rename them.

    Args:
        folded: the network to quantize; not changed.
        blocks: the blocks whose pooled activations are features.
        engine: quantized engine to convert for.
        steps: number of distillation steps; with 0 both versions are the same.
        lr: peak learning rate of the distillation.
        sample: uint8 (m, 3, S, S), to calibrate and to choose the better version.
        images: uint8 (n, 3, S, S), for the distillation.
        normalization: of both kinds of images.
        seed: seed of the images' order.
    """
    # Module constructors of torch.ao draw random weights that are replaced at once.
    with torch.random.fork_rng(devices=[]):
        similar = equalized(folded, normalization.batches(sample[:_CALIBRATION_IMAGES]))
        alike = Tapped(similar, blocks)
        # Equalization changes the channels of inner blocks, but not the last layer's.
        teacher = Tapped(folded, blocks) if is_last(folded, blocks) else alike
        student = prepare_student(alike, engine)
        calibrate(student, normalization.batches(sample[:_CALIBRATION_IMAGES]))
        correct_bias(student, alike, normalization(sample[:_CORRECTION_IMAGES]))
        first = convert(student)
        make_agree(first, *normalization.levels, sample.shape[-1])
        if not steps:
            return Quantized(first, first)
        losses = distill(
            student,
            teacher,
            distillation_batches(images, normalization, steps, seed),
            steps=steps,
            lr=lr,
        )
        _log.debug("distillation: loss %.4f to %.4f", losses[0], losses[-1])
        second = convert(student)
        make_agree(second, *normalization.levels, sample.shape[-1])
        networks = [first, second]
        return Quantized(first, _closest(networks, teacher, normalization.batches(sample)))


def _closest(networks: list[Converted], teacher: nn.Module, batches: Iterable[Tensor]) -> Converted:
    """The int8 network whose pooled features differ least from the float ones.

    Rounding errors of a whole network are erratic. If post-training quantization happens to do
    very well, a network after some steps of training can be slightly worse.
    """
    sizes, errors = np.zeros(1), np.zeros((len(networks), 1))
    with torch.inference_mode(), accepted_deprecations():
        for batch in batches:
            targets = pooled(teacher, batch)
            sizes = sizes + np.array([float(want.square().sum()) for want in targets])
            errors = errors + [
                [
                    float((tap.dequantize().mean((2, 3)) - want).square().sum())
                    for tap, want in zip(network.body(network.quant(batch)), targets, strict=True)
                ]
                for network in networks
            ]
    # Relative to the block's features, because blocks have activations of different sizes.
    return networks[int(np.argmin((errors / np.maximum(sizes, 1e-12)).sum(axis=1)))]


def distillation_batches(
    images: UInt8Array, normalization: Normalization, steps: int, seed: int
) -> Iterator[Tensor]:
    """Normalized batches, in a new random order for each pass over the images."""
    size = min(_DISTILL_BATCH, len(images))
    per_epoch = len(images) // size
    for step in track(range(steps), "Distilling", steps):
        epoch, position = divmod(step, per_epoch)
        order = permutation(len(images), seed, Purpose.DISTILLATION, epoch)
        yield normalization(images[order[position * size : (position + 1) * size]])
