"""Makes the algorithm that [strategy] asks for, and refuses impossible combinations."""

from __future__ import annotations

from typing import Any

from common.config import AvailabilityConfig, Config
from common.errors import ConfigError
from common.types import Affine
from server.round.algorithm import Algorithm, Run
from server.round.own import OwnAlgorithm
from server.round.stock import StockAlgorithm, build_stock, is_stock
from server.strategies import build_strategy, trains_by_gradients
from server.strategies.statistics_first import with_statistics
from server.strategy import Strategy

__all__ = ["check_strategy", "make_algorithm"]


def check_strategy(config: Config) -> None:
    """Refuse a wrong strategy name or argument before the long work starts."""
    if config.strategy.init_from and config.strategy.init != "zeros":
        raise ConfigError(
            [f"strategy.init={config.strategy.init!r} and strategy.init-from exclude each other"]
        )
    if is_stock(config.strategy.name):
        build_stock(config.strategy.name, config.strategy.args, lr=config.train.lr)
        if problem := _stock_problem(config):
            raise ConfigError([problem])
        return
    own = build_strategy(config.strategy.name, config.strategy.args)
    if not trains_by_gradients(own):
        _check_closed_form(config, own.name)
    if own.plain_sgd and config.train.momentum:
        raise ConfigError([f"train.momentum must be 0 with {own.name}: it needs plain SGD steps"])


def _stock_problem(config: Config) -> str | None:
    """Keys that Flower's strategies do not support, as they sample and read clients themselves."""
    if config.strategy.init != "zeros" or config.strategy.precondition != "none":
        return "strategy.init and precondition need one of fedhead's strategies"
    if config.availability != AvailabilityConfig():
        return "[availability] needs one of fedhead's strategies: Flower's sample nodes themselves"
    if config.round.over_selection:
        return "round.over-selection needs one of fedhead's strategies"
    if config.attack.changes_updates:
        return f"attack.kind={config.attack.kind!r} needs one of fedhead's strategies"
    return None


def _check_closed_form(config: Config, name: str) -> None:
    """Refuse keys that have no effect if clients send statistics instead of deltas."""
    if config.strategy.init != "zeros" or config.strategy.precondition != "none":
        raise ConfigError([f"{name} has no gradients: neither init nor precondition applies"])
    if config.strategy.init_from:
        raise ConfigError([f"{name} has no gradients: init-from does not apply"])
    if config.attack.changes_updates and config.attack.kind != "inflate":
        raise ConfigError(
            [
                f"attack.kind={config.attack.kind!r} changes deltas, but clients of {name} send "
                "none: only label-flip and inflate apply"
            ]
        )


def make_algorithm(run: Run, affine: Affine, zero_point: int) -> Algorithm:
    """The algorithm that runs the configured strategy.

    Args:
        run: grid, registry and configuration.
        affine: how integer features become x.
        zero_point: the integer feature that stands for 0.
    """
    config = run.config
    if is_stock(config.strategy.name):
        strategy = build_stock(config.strategy.name, config.strategy.args, lr=config.train.lr)
        return StockAlgorithm(run, strategy)
    own = build_strategy(config.strategy.name, config.strategy.args)
    return OwnAlgorithm(run, _prepared(config, own), affine, zero_point)


def _prepared(config: Config, own: Strategy[Any]) -> Strategy[Any]:
    """The strategy, after a round of statistics if the configuration asks for one."""
    settings = config.strategy
    starts, steps = settings.init == "fed3r", settings.precondition == "gram"
    if not (starts or steps):
        return own
    return with_statistics(
        own,
        temperature=settings.init_temperature if starts else 0.0,
        init_lambda=settings.init_lambda,
        precondition_lambda=settings.precondition_lambda if steps else 0.0,
    )
