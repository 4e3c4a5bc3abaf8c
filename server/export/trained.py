"""The input of an export: a backbone with its trained head, and real images for the checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from common.backbone.frozen import FrozenBackbone
from common.errors import ExportError
from common.images import ByteArray
from common.privacy.words import NOT_PRIVATE
from common.temperature import scaled
from common.types import FloatArray, Head, IntArray
from server.export.card import Calibration
from server.export.folding import folded

__all__ = ["TrainedModel"]


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """One run's result for an export.

    Attributes:
        backbone: the backbone that the head was trained on.
        head: the float head, for x from ``backbone.affine``.
        classes: K names, in the order of the head's rows.
        metrics: the run's metrics, for the card.
        images: uint8 (m, 3, H, W), m >= 1, real test images on which a file is run.
        features: uint8 (n, d), n >= m, of the images and then of more test images; checks that do
            not need the backbone use all of them.
        labels: int64 (n,); the first m are the images' labels.
        calibration: the head's temperature and how good it is; None: logits stay as they are.
        privacy: what the training guarantees its clients, in words, for the card.
        trained_sha256: SHA-256 of the trained head, if ``head`` is that one scaled or folded.
        pooled: if the backbone projects its features: uint8 (n, D), those that it projects.
        unfolded: float32 (n, K), logits of the head before a projection was folded into it.

    Raises:
        ExportError: the parts do not fit each other.
    """

    backbone: FrozenBackbone
    head: Head
    classes: tuple[str, ...]
    metrics: Mapping[str, float]
    images: ByteArray
    features: ByteArray
    labels: IntArray
    calibration: Calibration | None = None
    privacy: str = NOT_PRIVATE
    trained_sha256: str = ""
    pooled: ByteArray | None = None
    unfolded: FloatArray | None = None

    def __post_init__(self) -> None:
        spec, head = self.backbone.spec, self.head
        if head.num_features != spec.num_features:
            raise ExportError(
                f"the head has {head.num_features} features, "
                f"but the backbone has {spec.num_features}"
            )
        if len(self.classes) != head.num_classes:
            raise ExportError(
                f"the head has {head.num_classes} classes, but {len(self.classes)} names"
            )
        if not np.isfinite(head.matrix).all():
            raise ExportError("the head is not finite")
        size = spec.input_size
        if self.images.dtype != np.uint8 or self.images.shape[1:] != (3, size, size):
            raise ExportError(
                f"images are {self.images.dtype} {self.images.shape}, "
                f"expected uint8 (n, 3, {size}, {size})"
            )
        known = len(self.features)
        if not 0 < len(self.images) <= known or self.labels.shape != (known,):
            raise ExportError(
                f"{len(self.images)} images to check the model on, {known} features, "
                f"{self.labels.size} labels"
            )
        shape = (known, head.num_features)
        if self.features.dtype != np.uint8 or self.features.shape != shape:
            raise ExportError(
                f"features are {self.features.dtype} {self.features.shape}, expected uint8 {shape}"
            )

    @property
    def head_sha256(self) -> str:
        """SHA-256 of the trained head."""
        return self.trained_sha256 or self.head.sha256

    @property
    def temperature(self) -> float:
        """T; 1 if there is none."""
        return self.calibration.temperature if self.calibration else 1.0

    def for_prediction(self) -> TrainedModel:
        """The same with a head whose logits are divided by the temperature, without projection.

        A projection is folded into the head: the file computes what it would without one.

        Raises:
            ExportError: the features that the projection is of are not known.
        """
        model = self
        if self.temperature != 1:
            head = scaled(self.head, self.temperature)
            model = replace(self, head=head, trained_sha256=self.head_sha256)
        return model._folded()

    def _folded(self) -> TrainedModel:
        projection, base = self.backbone.projection, self.backbone.base
        if projection is None:
            return self
        if self.pooled is None:
            raise ExportError("the projected features have no unprojected ones beside them")
        return replace(
            self,
            backbone=base,
            head=folded(self.head, projection, base.affine),
            features=self.pooled,
            trained_sha256=self.head_sha256,
            pooled=None,
            unfolded=self.logits,
        )

    @cached_property
    def logits(self) -> FloatArray:
        """float32 (n, K): the head's logits."""
        logits: FloatArray = (
            self.backbone.affine(self.features) @ self.head.weight.T + self.head.bias
        )
        return logits

    @property
    def trained_logits(self) -> FloatArray:
        """float32 (n, K): those of the trained head, on projected features if there are any."""
        return self.logits if self.unfolded is None else self.unfolded
