"""The section on the frozen network."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from common.backbone.spec import IMAGENET_MEAN, IMAGENET_STD
from common.config.numbers import Count
from common.toml_model import Section

__all__ = ["BackboneConfig"]

_Colour = Annotated[float, Field(ge=0, le=1)]
_Deviation = Annotated[float, Field(gt=0, le=1)]
# TOML has lists, which are no tuples to a strict model.
Colours = Annotated[tuple[_Colour, _Colour, _Colour], Field(strict=False)]
Deviations = Annotated[tuple[_Deviation, _Deviation, _Deviation], Field(strict=False)]


class BackboneConfig(Section):
    """[backbone]: the frozen network."""

    arch: Literal["mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small"] = "mobilenet_v2"
    weights: str = Field("imagenet", min_length=1)
    """imagenet, random, file:PATH or the name of a torchvision weights enum."""
    input_size: Annotated[int, Field(ge=32, le=1024)] = 96
    """Height and width in pixels."""
    mean: Colours = IMAGENET_MEAN
    """Of red, green and blue in [0, 1], as the weights were trained; TensorFlow's are often 0.5."""
    std: Deviations = IMAGENET_STD
    """Likewise; the network gets (pixel / 255 - mean) / std."""
    engine: Literal["qnnpack", "x86", "onednn", "fbgemm"] = "qnnpack"
    """qnnpack computes the same bits as a phone."""
    distill_steps: Count = 40
    """Steps of quantization-aware distillation; 0: post-training quantization."""
    feature_scaling: Literal["none", "center", "standardize"] = "center"
    """How trainers see features; folded into the head at export."""
