"""A real int8 backbone on real pictures, small enough for the fast tier."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from common.backbone.frozen import FrozenBackbone
from common.backbone.prepare import prepare_backbone
from common.images import ByteArray, decode_array
from common.types import FeatureSet, Head, IntArray
from server.export import ExportReport, export_model

SIZE = 32
CLASSES = tuple(str(digit) for digit in range(10))


@dataclass(frozen=True, eq=False)
class Trained:
    """A backbone, a head that was fitted to its features, and test images.

    Attributes:
        backbone: MobileNetV2 with random weights at 32 px.
        head: ridge regression on 400 images.
        images: uint8 (60, 3, 32, 32), not among those.
        labels: int64 (60,).
    """

    backbone: FrozenBackbone
    head: Head
    images: ByteArray
    labels: IntArray


@pytest.fixture(scope="session")
def trained() -> Trained:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.images[:460] * (255 / 16)).astype(np.uint8)
    images = np.stack([decode_array(picture, SIZE) for picture in pixels])
    labels = digits.target[:460].astype(np.int64)
    backbone = prepare_backbone(
        arch="mobilenet_v2",
        weights="random",
        input_size=SIZE,
        engine="qnnpack",
        distill_steps=0,
        feature_scaling="standardize",
        images=images[:64],
        seed=0,
    )
    x = FeatureSet(
        backbone.features(images[:400]), labels[:400], backbone.affine, backbone.fingerprint
    ).x.astype(np.float64)
    gram = x.T @ x + 100 * np.eye(x.shape[1])
    head = Head.from_matrix(np.linalg.solve(gram, x.T @ np.eye(10)[labels[:400]]).T)
    return Trained(backbone, head, images[400:], labels[400:])


def export(trained: Trained, path: Path) -> ExportReport:
    return export_model(
        trained.backbone,
        trained.head,
        classes=CLASSES,
        metrics={"accuracy": 0.5, "loss": float("nan")},
        images=trained.images,
        labels=trained.labels,
        path=path,
    )


@pytest.fixture(scope="session")
def exported(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    return export(trained, tmp_path_factory.mktemp("run") / "model.pt")
