"""What every test shares: a cache of its own, and small experiments."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from server.export import ExportReport
    from server.trained import TrainedModel

# Before flwr or torch is imported anywhere; see simulations/cli.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One cache for the session, so that no test touches the user's."""
    path = tmp_path_factory.mktemp("cache")
    before = os.environ.get("FEDHEAD_CACHE")
    os.environ["FEDHEAD_CACHE"] = str(path)
    yield path
    if before is None:
        del os.environ["FEDHEAD_CACHE"]
    else:
        os.environ["FEDHEAD_CACHE"] = before


# scikit-learn's 8x8 digits, scaled up to 64 pixels: seconds of work, and learnable.
TINY = """
name = "tiny"
[data]
source = "digits"
calibration-examples = 64
[partition]
scheme = "dirichlet"
alpha = 1.0
num-clients = 8
[backbone]
weights = "imagenet"
input-size = 64
distill-steps = 0
[train]
rounds = 5
clients-per-round = 4
lr = 0.01
[baseline]
epochs = 0
"""


@pytest.fixture
def tiny_toml() -> str:
    """The small experiment as a file's content."""
    pytest.importorskip("sklearn", reason="pip install 'fedhead[demo]'")
    return TINY


@pytest.fixture
def tiny(tiny_toml: str, tmp_path: Path) -> Callable[..., Path]:
    """Makes a run folder of a small experiment, with overrides such as "train.rounds=3"."""
    from common.config import load_config, parse_overrides
    from simulations.run import new_run

    def make(*overrides: str, name: str = "run") -> Path:
        file = tmp_path / "tiny.toml"
        file.write_text(tiny_toml)
        items = [f"out={tmp_path / name}", *overrides]
        return new_run(load_config(file, parse_overrides(items)), overwrite=False)

    return make


@pytest.fixture(scope="session")
def trained() -> TrainedModel:
    """A real int8 backbone on real pictures, small enough for the fast tier.

    MobileNetV2 with random weights, ridge regression on 400 images, 60 others to test on.
    """
    pytest.importorskip("sklearn", reason="pip install 'fedhead[demo]'")
    import numpy as np
    from sklearn.datasets import load_digits

    from common.backbone.prepare import prepare_backbone
    from common.images import decode_array
    from common.types import FeatureSet, Head
    from server.trained import TrainedModel

    digits = load_digits()
    pixels = (digits.images[:460] * (255 / 16)).astype(np.uint8)
    images = np.stack([decode_array(picture, 32) for picture in pixels])
    labels = digits.target[:460].astype(np.int64)
    backbone = prepare_backbone(
        arch="mobilenet_v2",
        weights="random",
        input_size=32,
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
        classes=tuple(str(digit) for digit in range(10)),
        metrics={"accuracy": 0.5, "loss": float("nan")},
        images=images[400:],
        features=backbone.features(images[400:]),
        labels=labels[400:],
    )


@pytest.fixture(scope="session")
def exported(trained: TrainedModel, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    from server.export import export

    return export(trained, "model", tmp_path_factory.mktemp("run") / "model.pt")


@pytest.fixture(scope="session")
def device_files(
    trained: TrainedModel, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, ExportReport]:
    """The trained model as device.pt and device.ptl, by target."""
    from server.export import FILES, export

    folder = tmp_path_factory.mktemp("device")
    return {
        target: export(trained, target, folder / FILES[target]) for target in ("device", "lite")
    }
