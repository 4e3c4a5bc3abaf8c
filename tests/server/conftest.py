"""A real int8 backbone on real pictures, small enough for the fast tier."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from common.backbone.prepare import prepare_backbone
from common.images import decode_array
from common.types import FeatureSet, Head
from server.export import FILES, export
from server.targets.cards import ExportReport
from server.trained import TrainedModel

SIZE = 32
CLASSES = tuple(str(digit) for digit in range(10))


@pytest.fixture(scope="session")
def trained() -> TrainedModel:
    """MobileNetV2 with random weights, ridge regression on 400 images, 60 others to test on."""
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
    return TrainedModel(
        backbone,
        head,
        classes=CLASSES,
        metrics={"accuracy": 0.5, "loss": float("nan")},
        images=images[400:],
        features=backbone.features(images[400:]),
        labels=labels[400:],
    )


@pytest.fixture(scope="session")
def exported(trained: TrainedModel, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    return export(trained, "model", tmp_path_factory.mktemp("run") / "model.pt")


@pytest.fixture(scope="session")
def device_files(
    trained: TrainedModel, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, ExportReport]:
    """The trained model as device.pt and device.ptl, by target."""
    folder = tmp_path_factory.mktemp("device")
    return {
        target: export(trained, target, folder / FILES[target]) for target in ("device", "lite")
    }
