"""Which trackers there are, and what each needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from common.config import TrackingConfig
from common.errors import MissingExtraError
from server.record.trackers.tracker import Tracked, Tracker

__all__ = ["KINDS", "Kind", "check_trackers"]


@dataclass(frozen=True)
class Kind:
    """A kind of tracker.

    Attributes:
        package: that must be installed.
        extra: of fedhead, that installs it.
        start: opens one; it imports the package, which takes seconds.
        check: raises where it could not work as configured.
    """

    package: str
    extra: str
    start: Callable[[Tracked], Tracker]
    check: Callable[[TrackingConfig], None] = lambda _: None


def _tensorboard(run: Tracked) -> Tracker:
    from server.record.trackers.tensorboard import TensorBoard

    return TensorBoard(run)


def _mlflow(run: Tracked) -> Tracker:
    from server.record.trackers.mlflow import MLflow

    return MLflow(run)


def _wandb(run: Tracked) -> Tracker:
    from server.record.trackers.wandb import WandB

    return WandB(run)


def _check_wandb(settings: TrackingConfig) -> None:
    from server.record.trackers.wandb import check_login

    check_login(settings)


KINDS: Mapping[str, Kind] = {
    "tensorboard": Kind("tensorboardX", "simulation", _tensorboard),
    "mlflow": Kind("mlflow", "mlflow", _mlflow),
    "wandb": Kind("wandb", "wandb", _wandb, _check_wandb),
}
"""By name in [tracking]."""


def check_trackers(settings: TrackingConfig) -> None:
    """Find what trackers lack before anything is made or computed.

    Raises:
        MissingExtraError: a package is not installed.
        ConfigError: one cannot work as configured.
    """
    for name in settings.trackers:
        kind = KINDS[name]
        if find_spec(kind.package) is None:
            raise MissingExtraError(kind.package, kind.extra, f"tracking.trackers={name}")
        kind.check(settings)
