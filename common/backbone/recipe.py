"""How a backbone is prepared. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from common.backbone.spec import FeatureScaling

__all__ = ["DISTILL_LR", "Recipe"]

DISTILL_LR = 3e-6


@dataclass(frozen=True)
class Recipe:
    """The arguments of ``prepare_backbone`` beside the images."""

    arch: str
    weights: str
    input_size: int
    engine: str
    distill_steps: int
    feature_scaling: FeatureScaling
    seed: int
    distill_lr: float = DISTILL_LR
