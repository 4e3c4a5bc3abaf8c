"""The section on the frozen network."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from common.backbone.architectures import ARCHITECTURES, architecture
from common.backbone.blocks import NAMED_FEATURES, Features
from common.backbone.spec import Directions
from common.config.numbers import Count
from common.toml_model import Section

__all__ = ["BackboneConfig"]

_Colour = Annotated[float, Field(ge=0, le=1)]
_Deviation = Annotated[float, Field(ge=1e-3, le=1)]
_Colours = tuple[float, float, float]
# TOML has lists only, and a strict model refuses a list for a tuple.
Colours = Annotated[tuple[_Colour, _Colour, _Colour], Field(strict=False)]
Deviations = Annotated[tuple[_Deviation, _Deviation, _Deviation], Field(strict=False)]


def _backbone_name(value: str) -> str:
    if value not in ARCHITECTURES:
        raise ValueError(f"must be one of {', '.join(ARCHITECTURES)}")
    return value


def _blocks(value: object) -> object:
    """TOML has lists only; the numbers of blocks are kept in their order."""
    if isinstance(value, str) and value in NAMED_FEATURES:
        return value
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"must be one of {', '.join(NAMED_FEATURES)}, or a list of block numbers")
    if any(type(block) is not int or block < 0 for block in value):
        raise ValueError("must list block numbers, whole and from 0")
    if len(set(value)) < len(value):
        raise ValueError("must name each block once")
    return tuple(sorted(value))


def _directions(value: object) -> object:
    if value in ("off", "auto") or (type(value) is int and value > 0):
        return value
    raise ValueError('must be "off", "auto" or a whole number above 0')


BackboneName = Annotated[str, AfterValidator(_backbone_name)]


class BackboneConfig(Section):
    """[backbone]: the frozen network."""

    arch: BackboneName = Field("mobilenet_v2", description=f"One of {', '.join(ARCHITECTURES)}.")
    weights: str = Field("imagenet", min_length=1)
    """imagenet, random, file:PATH or the name of a torchvision weights enum."""
    input_size: Annotated[int, Field(ge=32, le=1024)] = 96
    """Height and width in pixels."""
    mean: Colours | None = None
    """Mean of red, green and blue in [0, 1] that the weights were trained with; unset: that of the
    architecture's own weights. TensorFlow models often use 0.5."""
    std: Deviations | None = None
    """Standard deviation, likewise. The network gets (pixel / 255 - mean) / std."""
    features: Annotated[Features, BeforeValidator(_blocks)] = "compact"
    """compact: averages over space of inner blocks' activations, and the layers behind them are
    dropped; gap: of the last layer's; gap+mid: of both; or a list of block numbers, from 0."""
    engine: Literal["qnnpack", "x86", "onednn", "fbgemm"] = "qnnpack"
    """Torch's quantized engine; qnnpack gives the same bits here as on a phone."""
    distill_steps: Count = 40
    """Steps of quantization-aware distillation; 0, or fewer than 64 images: post-training
    quantization."""
    feature_scaling: Literal["none", "center", "standardize"] = "center"
    """How features are scaled for training; the export folds the scaling into the head."""
    projection: Annotated[Literal["off"] | Directions, BeforeValidator(_directions)] = "off"
    """Number of directions that training sees instead of the features, so that clients send less:
    those in which features of the server's calibration images vary most, and random ones where the
    images are too few; auto: up to 255, by the number of images. The export folds them into the
    head."""

    def normalization(self, arch: str = "") -> tuple[_Colours, _Colours]:
        """Mean and standard deviation, as set or else the architecture's own.

        Args:
            arch: an architecture; empty: the configured one.
        """
        row = architecture(arch or self.arch)
        return self.mean or row.mean, self.std or row.std
