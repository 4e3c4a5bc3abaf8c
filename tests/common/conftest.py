"""Small backbones that tests of this folder share; random weights, 32 px, seconds to make."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from common import images as image_files
from common.backbone.architectures import ARCHITECTURES
from common.backbone.cache import cached_backbone
from common.backbone.frozen import FrozenBackbone, UInt8Array
from common.backbone.prepare import prepare_backbone
from common.backbone.recipe import Recipe

SIZE = 32


def make_images(n: int, seed: int = 0, size: int = SIZE) -> UInt8Array:
    """Smooth coloured blobs, uint8 (n, 3, size, size): noise alone looks all the same."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, 3, 4, 4))
    return coarse.repeat(size // 4, 2).repeat(size // 4, 3).astype(np.uint8)


RECIPE = Recipe(
    arch="mobilenet_v2",
    weights="random",
    input_size=SIZE,
    engine="qnnpack",
    distill_steps=1,
    feature_scaling="standardize",
    seed=3,
)


def make_backbone(images: UInt8Array, **changes: object) -> FrozenBackbone:
    return prepare_backbone(dataclasses.replace(RECIPE, **changes), images)  # type: ignore[arg-type]


def _need_embedded(arch: str) -> None:
    embedded = ARCHITECTURES[arch].embedded
    assert embedded is not None
    try:
        importlib.metadata.distribution(embedded.package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"needs fedhead[{embedded.extra}]: embedded weights of {arch}")


@pytest.fixture
def embedded_weights() -> None:
    """Skips a test where the package that holds MobileNetV2's is not installed."""
    _need_embedded("mobilenet_v2")


@pytest.fixture
def lite_weights() -> None:
    """Skips a test where the package that holds EfficientNet-Lite0's is not installed."""
    _need_embedded("efficientnet_lite0")


@pytest.fixture(scope="session")
def images() -> UInt8Array:
    return make_images(24)


@pytest.fixture(scope="session")
def prepare(cache: Path) -> Callable[..., FrozenBackbone]:
    """``make_backbone``, remembering what it made; ``__wrapped__`` does not."""
    made: dict[str, FrozenBackbone] = {}

    @functools.wraps(make_backbone)
    def remember(images: UInt8Array, **changes: object) -> FrozenBackbone:
        key = f"{hashlib.sha256(images.tobytes()).hexdigest()} {sorted(changes.items())}"
        if key not in made:
            recipe = dataclasses.replace(RECIPE, **changes)  # type: ignore[arg-type]
            made[key] = cached_backbone(recipe, images, cache)
        return made[key]

    return remember


@pytest.fixture(scope="session")
def backbone(images: UInt8Array, prepare: Callable[..., FrozenBackbone]) -> FrozenBackbone:
    return prepare(images)


@pytest.fixture
def no_heic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if the extra were not installed."""
    monkeypatch.setattr(image_files, "find_spec", lambda name: None)
    image_files.heic_is_read.cache_clear()
    yield
    image_files.heic_is_read.cache_clear()
