"""The number that ``train.lr = "auto"`` stands for in a run."""

from __future__ import annotations

import logging

from common.calibration import needed_calibration
from common.config import Config, changed
from common.experiment import calibration_positions
from common.rates import automatic_rate, mean_norm
from common.types import WHOLE, FeatureSet
from server.record.runfolder import RunFolder
from server.round.stock import is_stock
from server.strategies import build_strategy, trains_by_gradients

__all__ = [
    "calibration_features",
    "feature_norm",
    "takes_steps",
    "unit_rate",
    "with_learning_rate",
]

logger = logging.getLogger("fedhead")


def with_learning_rate(config: Config, folder: RunFolder, features: FeatureSet) -> Config:
    """The configuration that a run trains with: the learning rate is a number.

    A run that goes on has the rate that it began with.

    Args:
        config: as it was given.
        folder: the run folder, which keeps the rate.
        features: of the whole data set.

    Raises:
        DataError: there are no calibration images.
    """
    if config.train.lr != "auto":
        return config
    rate = folder.learning_rate()
    if rate is None:
        rate = _chosen(config, features)
        folder.bind_learning_rate(rate)
    return changed(config, {"train": {"lr": rate}})


def takes_steps(config: Config) -> bool:
    """Whether the clients of the configured strategy take steps, so that a rate matters."""
    name = config.strategy.name
    return is_stock(name) or trains_by_gradients(build_strategy(name, config.strategy.args))


def feature_norm(config: Config, features: FeatureSet) -> float:
    """The mean norm of the calibration images' features, which is public.

    Raises:
        DataError: there are no calibration images.
    """
    return mean_norm(calibration_features(config, features).x)


def unit_rate(norm: float) -> float:
    """The rate that moves logits on features of a norm as far as a rate of 1 on unit vectors."""
    return 1 / norm**2


def calibration_features(config: Config, features: FeatureSet) -> FeatureSet:
    """Those of the calibration images.

    Raises:
        DataError: there are none.
    """
    return features.select(needed_calibration(calibration_positions(config), config.data.source))


def _chosen(config: Config, features: FeatureSet) -> float:
    if config.privacy.active and config.train.optimizer == "sgd":
        return unit_rate(feature_norm(config, features))
    calibration, train = calibration_features(config, features), config.train
    rate = automatic_rate(
        calibration.x,
        optimizer=train.optimizer,
        momentum=train.momentum,
        local_epochs=train.local_epochs,
        batch_size=train.batch_size or WHOLE,
        preconditioned=config.strategy.precondition == "gram",
    )
    if takes_steps(config):
        logger.info("train.lr: %g, chosen on %d calibration images", rate, len(calibration))
    return rate
