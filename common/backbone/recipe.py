"""How a backbone is prepared. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from common.backbone.blocks import Features
from common.backbone.spec import IMAGENET_MEAN, IMAGENET_STD, FeatureScaling

__all__ = ["DISTILL_LR", "METHOD", "Recipe"]

DISTILL_LR = 3e-6
METHOD = 2
"""Number of the way in which a recipe is carried out; part of the cache's keys. With 1, scales were
not yet such that all runtimes round alike (``common.backbone.agreement``)."""


@dataclass(frozen=True)
class Recipe:
    """The settings of ``prepare_backbone``.

    Attributes:
        arch: a key of ``ARCHITECTURES``.
        weights: see ``load_weights``.
        input_size: S, height and width in pixels.
        engine: "qnnpack" (a phone's arithmetic) or another engine of this torch.
        distill_steps: quantization-aware training steps; 0 is post-training quantization.
        feature_scaling: see ``FeatureScaling``.
        seed: seed of the order of the images, and of random weights.
        mean: mean of red, green and blue in [0, 1] that the weights were trained with.
        std: standard deviation, likewise; above 0.
        distill_lr: peak learning rate of the distillation.
        features: see ``Features``.
    """

    arch: str
    weights: str
    input_size: int
    engine: str
    distill_steps: int
    feature_scaling: FeatureScaling
    seed: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    distill_lr: float = DISTILL_LR
    features: Features = "compact"
