"""The description of a backbone. Imports no torch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from common.errors import BackboneError

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "PROJECTED_ZERO",
    "BackboneSpec",
    "Directions",
    "FeatureScaling",
    "Tap",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

FeatureScaling = Literal["none", "center", "standardize"]
"""How features are scaled for training, measured on the calibration images. "none": not at all;
"center": each feature's mean is subtracted, and one gain for all features of a block makes their
mean variance 1; "standardize": each feature that varies gets mean 0 and variance 1."""

PROJECTED_ZERO = 128
"""The value of a projected feature that stands for 0."""

Directions = int | Literal["auto"]
"""Onto how many directions features are projected; see ``find_projection``."""

# Fields that describe a backbone but do not change what it computes.
_NOT_CONTENT = ("weights", "weights_licence", "torch_version", "float_model_bytes")


@dataclass(frozen=True)
class Tap:
    """One block whose pooled activations are features.

    Attributes:
        block: its number, from 0.
        num_features: its channels.
        scale: step of its uint8 features.
        zero_point: the uint8 value that stands for 0.
    """

    block: int
    num_features: int
    scale: float
    zero_point: int


_TAP = {"block": int, "num_features": int, "scale": float, "zero_point": int}


@dataclass(frozen=True)
class BackboneSpec:
    """Facts about one prepared backbone, stored beside it as JSON.

    Attributes:
        arch: a key of ``ARCHITECTURES``.
        weights: label of the pretrained weights.
        weights_licence: their licence, as far as their source states it.
        input_size: height and width of the images in pixels.
        mean: mean of red, green and blue, in [0, 1].
        std: standard deviation, above 0; the module computes ``(pixel / 255 - mean) / std``.
        engine: quantized engine to set before loading ("qnnpack" is the phone's arithmetic).
        taps: the blocks that give features, in the features' order.
        feature_scaling: see ``FeatureScaling``.
        probe: SHA-256 of the pooled features of two fixed noise images, checked at every load.
        torch_version: torch's version on the machine that built it.
        float_model_bytes: bytes of the backbone's float32 weights as one safetensors payload.
        projection: number of directions onto which the features are projected; 0: they are not.
        base: fingerprint of the backbone without its projection; empty if it has none.
    """

    arch: str
    weights: str
    weights_licence: str
    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    engine: str
    taps: tuple[Tap, ...]
    feature_scaling: FeatureScaling
    probe: str
    torch_version: str
    float_model_bytes: int
    projection: int = 0
    base: str = ""

    @property
    def num_pooled(self) -> int:
        """Number of pooled features, before any projection."""
        return sum(tap.num_features for tap in self.taps)

    @property
    def num_features(self) -> int:
        """d, number of features that the backbone gives."""
        return self.projection or self.num_pooled

    @property
    def zero_points(self) -> npt.NDArray[np.uint8]:
        """Each feature's value that stands for 0, uint8 (d,)."""
        if self.projection:
            return np.full(self.projection, PROJECTED_ZERO, np.uint8)
        values = np.array([tap.zero_point for tap in self.taps], np.uint8)
        return np.repeat(values, [tap.num_features for tap in self.taps])

    def unprojected(self) -> BackboneSpec:
        """The same without its projection."""
        return dataclasses.replace(self, projection=0, base="")

    def to_json(self) -> str:
        """One line of JSON with sorted keys."""
        return json.dumps(self._values(), sort_keys=True)

    def content_json(self) -> str:
        """The part that the fingerprint covers: ``to_json`` without labels and versions."""
        values = self._values()
        for name in _NOT_CONTENT:
            del values[name]
        return json.dumps(values, sort_keys=True)

    def _values(self) -> dict[str, object]:
        values = dataclasses.asdict(self)
        for name in ("projection", "base"):
            if not values[name]:
                del values[name]  # fingerprints of backbones without one do not cover the key
        return values

    @classmethod
    def from_json(cls, text: str) -> BackboneSpec:
        """Read what ``to_json`` wrote.

        Raises:
            BackboneError: not JSON, or a field is missing, unknown or of the wrong type.
        """
        try:
            values = json.loads(text)
            taps = tuple(Tap(**tap) for tap in values["taps"])
            colours = {name: tuple(values[name]) for name in ("mean", "std")}
            spec = cls(**{**values, **colours, "taps": taps})
        except (ValueError, TypeError, KeyError, RecursionError) as exc:
            raise BackboneError(f"backbone description cannot be read: {exc}") from exc
        texts = dict.fromkeys(("arch", "engine", "probe", "base"), str)
        _check_types(spec, {**texts, "input_size": int, "projection": int})
        for tap in spec.taps:
            _check_types(tap, _TAP)
        if spec.feature_scaling not in get_args(FeatureScaling):
            raise BackboneError(
                f"backbone description: feature_scaling is {spec.feature_scaling!r}, "
                f"expected one of {', '.join(get_args(FeatureScaling))}"
            )
        return spec


def _check_types(value: BackboneSpec | Tap, kinds: Mapping[str, type]) -> None:
    for name, kind in kinds.items():
        if not isinstance(getattr(value, name), kind):
            raise BackboneError(
                f"backbone description: {name} is {getattr(value, name)!r}, "
                f"expected {kind.__name__}"
            )
