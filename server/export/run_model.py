"""The backbone of a run, and the trained model made of it and the head."""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from common.backbone.cache import cached_backbone, cached_projection
from common.backbone.frozen import FrozenBackbone, backbone_file
from common.backbone.recipe import Recipe
from common.backbone.spec import Directions
from common.calibration import needed_calibration
from common.config import BackboneConfig, Config
from common.datasets import Dataset
from common.errors import BackboneError
from common.evaluation import evaluate
from common.experiment import (
    calibration_positions,
    client_shares,
    experiment_dataset,
    experiment_features,
    held_out_positions,
)
from common.files import cache_root, write_atomic
from common.privacy import rule
from common.privacy.gaussian import gaussian_sigma
from common.privacy.words import NOT_PRIVATE
from common.readback import own_check
from common.types import FeatureSet, Head
from server.export.card import Calibration
from server.export.trained import TrainedModel

__all__ = [
    "backbone_of_run",
    "drop_backbone",
    "keep_backbone",
    "kept_backbone",
    "prepare",
    "trained_model",
]

logger = logging.getLogger("fedhead")

_KEPT = "backbone.safetensors"

_SELF_CHECK_IMAGES = 128


def prepare(config: Config, dataset: Dataset) -> FrozenBackbone:
    """The configured backbone, from the cache or quantized on the server's calibration images.

    Raises:
        DataError: there are no such images.
        BackboneError: as in ``cached_backbone`` and ``cached_projection``.
    """
    calibration = needed_calibration(calibration_positions(config), config.data.source)
    settings = config.backbone.model_copy(update={"projection": directions(config)})
    return _prepared_backbone(settings, dataset, calibration.tobytes(), config.data_seed)


def directions(config: Config) -> Literal["off"] | Directions:
    """The number of directions that training sees: in a private run, as many as noise leaves.

    With "auto" it follows from the number of clients in the configuration. A deployment's devices
    are not counted: the same backbone is signed for however many there will be.
    """
    privacy, partition = config.privacy, config.partition
    if not privacy.active or config.backbone.projection != "auto":
        return config.backbone.projection
    listed = len(config.train.clients)
    natural = partition.scheme == "natural" and not listed
    clients = len(client_shares(config)) if natural else listed or partition.num_clients
    sigma = gaussian_sigma(privacy.epsilon, privacy.delta)
    return rule.directions(clients, sigma)


@lru_cache(maxsize=4)  # a comparison's runs share them
def _prepared_backbone(
    settings: BackboneConfig, dataset: Dataset, calibration: bytes, seed: int
) -> FrozenBackbone:
    positions = np.frombuffer(calibration, np.int64)
    mean, std = settings.normalization()
    recipe = Recipe(
        arch=settings.arch,
        weights=settings.weights,
        input_size=settings.input_size,
        engine=settings.engine,
        distill_steps=settings.distill_steps,
        feature_scaling=settings.feature_scaling,
        seed=seed,
        mean=mean,
        std=std,
        features=settings.features,
    )
    images = dataset.images(positions, settings.input_size)
    backbone = cached_backbone(recipe, images, cache_root())
    if settings.projection == "off":
        return backbone
    return cached_projection(backbone, images, settings.projection, seed, cache_root())


def kept_backbone(path: Path) -> Path | None:
    """The file of the backbone in a run folder; None: there is none.

    It is kept because another machine or processor would make a slightly different one.
    """
    file = path / _KEPT
    return file if file.exists() else None


def backbone_of_run(path: Path, config: Config, dataset: Dataset) -> FrozenBackbone:
    """The backbone in a run folder; if there is none, the configured one.

    Raises:
        FedheadError: it cannot be prepared.
    """
    backbone = _kept(path) or prepare(config, dataset)
    if backbone.fingerprint not in _known:
        _known.clear()
        _known[backbone.fingerprint] = backbone
    return _known[backbone.fingerprint]


# Loaded only once: torch gives other names on a second load, and a model's bytes hold the names.
_known: dict[str, FrozenBackbone] = {}


@own_check("backbone.safetensors of a run")
def _kept(path: Path) -> FrozenBackbone | None:
    """The backbone in a run folder; None if there is none or it was damaged and is now removed."""
    file = kept_backbone(path)
    if file is None:
        return None
    try:
        kept = FrozenBackbone.load(path, opened=False)
        if kept.fingerprint not in _known:
            _ = kept.module  # loads it, which checks it
    except BackboneError as exc:
        logger.warning("%s: %s: preparing it again", file, exc)
        drop_backbone(path)
        return None
    return kept


def keep_backbone(source: FrozenBackbone | Path, path: Path) -> None:
    """Write a backbone, or its file, into a run folder that has none."""
    target = path / _KEPT
    if target.exists():
        return
    if isinstance(source, FrozenBackbone):
        cached = backbone_file(cache_root(), source.fingerprint)
        if not cached.exists():
            write_atomic(target, source.to_bytes())
            return
        source = cached
    write_atomic(target, source.read_bytes())


def drop_backbone(path: Path) -> None:
    """Remove a run folder's backbone, if there is one."""
    (path / _KEPT).unlink(missing_ok=True)


def trained_model(
    config: Config,
    backbone: FrozenBackbone,
    head: Head,
    test: FeatureSet,
    calibration: Calibration | None = None,
    privacy: str = NOT_PRIVATE,
) -> TrainedModel:
    """The input of an export: the head with its backbone, and test images with their features.

    Args:
        config: of the run.
        backbone: of the run.
        head: the head.
        test: the test images' features.
        calibration: of the head.
        privacy: what the training guarantees its clients, in words.
    """
    dataset, positions = experiment_dataset(config), held_out_positions(config)
    evaluation = evaluate(head, test)
    # The file runs on some images, evenly spread over all classes; the head alone on all.
    count = min(_SELF_CHECK_IMAGES, len(test))
    spread = np.linspace(0, len(test) - 1, count).astype(np.int64)
    order = np.concatenate([spread, np.setdiff1d(np.arange(len(test)), spread)])
    pooled = None
    if backbone.projection is not None:
        pooled = experiment_features(config, backbone.base).select(positions).q[order]
    return TrainedModel(
        backbone,
        head,
        classes=dataset.classes,
        metrics={"accuracy": evaluation.accuracy, "loss": evaluation.loss},
        images=dataset.images(positions[spread], backbone.spec.input_size),
        features=test.q[order],
        labels=test.labels[order],
        calibration=calibration,
        privacy=privacy,
        pooled=pooled,
    )
