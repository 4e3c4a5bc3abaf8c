"""Makes the algorithm that [strategy] asks for, and refuses impossible combinations."""

from __future__ import annotations

import inspect
import logging
from typing import Any

from common.config import AvailabilityConfig, Config, TrainConfig
from common.corrections import CORRECTIONS
from common.errors import ConfigError
from common.fields import FIELDS
from common.images import ByteArray
from common.local_loss import find_loss
from common.types import Affine, ClientPlan
from server.round.algorithm import Algorithm, Run
from server.round.codecs import check_codecs
from server.round.own import OwnAlgorithm
from server.round.private import Guard
from server.round.private_checks import check_private, check_private_stock
from server.round.stock import StockAlgorithm, build_stock, is_stock
from server.strategies import (
    build_strategy,
    first_plan,
    import_strategy,
    trains_by_gradients,
)
from server.strategies.one_shot import one_shot
from server.strategies.private import with_privacy
from server.strategies.statistics_first import with_statistics
from server.strategy import Strategy

__all__ = ["check_strategy", "make_algorithm", "prepared_strategy"]

logger = logging.getLogger("fedhead")


def check_strategy(config: Config) -> None:
    """Refuse a wrong strategy name, argument or loss before the long work starts."""
    find_loss(config.train.loss, config.train.loss_root)
    if config.strategy.init_from and config.strategy.init != "zeros":
        raise ConfigError(
            [f"strategy.init={config.strategy.init!r} and strategy.init-from exclude each other"]
        )
    check_private_stock(config)
    if is_stock(config.strategy.name):
        rate = 1.0 if config.train.lr == "auto" else config.train.lr  # any shows whether it fits
        build_stock(config.strategy.name, config.strategy.args, lr=rate)
        if problem := _stock_problem(config):
            raise ConfigError([problem])
        return
    own = build_strategy(config.strategy.name, config.strategy.args)
    plan = first_plan(own)
    if plan.kind != "sgd":
        _check_closed_form(config, own.name)
    if own.plain_sgd and config.train.momentum:
        raise ConfigError([f"train.momentum must be 0 with {own.name}: it needs plain SGD steps"])
    _check_suits(config.train, own, plan)
    check_codecs(config.codec, own, plan)
    check_private(config, own, plan)


def _check_suits(train: TrainConfig, own: Strategy[Any], plan: ClientPlan) -> None:
    """Refuse an optimizer or a loss that makes nonsense of what clients send or remember."""
    fields = [FIELDS[name] for name in plan.fields if name in FIELDS]
    correction = CORRECTIONS.get(plan.correction)
    needs_sgd = own.plain_sgd or any(field.of_sgd for field in fields)
    needs_sgd = needs_sgd or (correction is not None and correction.of_sgd)
    if needs_sgd and train.optimizer != "sgd":
        raise ConfigError(
            [
                f'train.optimizer must be "sgd" with {own.name}: it reads gradients out of what '
                f"clients' steps add up to, which {train.optimizer}'s do not"
            ]
        )
    if train.has_own_loss and any(field.of_loss for field in fields):
        raise ConfigError(
            [
                f"train.loss={train.loss!r} does not suit {own.name}: it weights clients by their "
                "cross-entropy, and they would minimise something else"
            ]
        )


def _stock_problem(config: Config) -> str | None:
    """Keys that Flower's strategies do not support, as they sample and read clients themselves."""
    if config.strategy.init != "zeros" or config.strategy.precondition != "none":
        return "strategy.init and precondition need one of fedhead's strategies"
    if config.availability != AvailabilityConfig():
        return "[availability] needs one of fedhead's strategies: Flower's sample nodes themselves"
    if {config.codec.up, config.codec.down} - {"", "none"}:
        return "[codec] needs one of fedhead's strategies: Flower's have a format of their own"
    if config.round.over_selection:
        return "round.over-selection needs one of fedhead's strategies"
    if config.attack.changes_updates:
        return f"{config.attack.named} needs one of fedhead's strategies"
    takes_rate = (
        "client_learning_rate"
        in inspect.signature(import_strategy(config.strategy.name)).parameters
    )
    has_one_rate = config.train.schedule == "constant" and not config.train.warmup_rounds
    if takes_rate and not (has_one_rate and config.train.optimizer == "sgd"):
        return (
            f"{config.strategy.name} takes the clients' one learning rate of SGD: "
            "train.optimizer, train.schedule and train.warmup-rounds must be as they are by default"
        )
    if takes_rate and config.train.has_own_loss:  # as q-FedAvg's alone does
        return (
            f"train.loss={config.train.loss!r} does not suit {config.strategy.name}: it weights "
            "clients by their cross-entropy, and they would minimise something else"
        )
    return None


def _check_closed_form(config: Config, name: str) -> None:
    """Refuse keys that have no effect if clients send statistics instead of deltas."""
    train = config.train
    keys = {
        "loss": train.has_own_loss,
        "optimizer": train.optimizer != "sgd",
        "schedule": train.schedule != "constant",
        "warmup-rounds": train.warmup_rounds > 0,
    }
    if given := [f"train.{key}" for key, is_given in keys.items() if is_given]:
        raise ConfigError(
            [f"{key} has no effect with {name}: clients take no steps" for key in given]
        )
    if config.strategy.init != "zeros" or config.strategy.precondition != "none":
        raise ConfigError([f"{name} has no gradients: neither init nor precondition applies"])
    if config.strategy.init_from:
        raise ConfigError([f"{name} has no gradients: init-from does not apply"])
    if config.attack.changes_updates and config.attack.kind != "inflate":
        raise ConfigError(
            [
                f"{config.attack.named} changes deltas, but clients of {name} send "
                "none: only label-flip, inflate and backdoor without a scale apply"
            ]
        )


def make_algorithm(run: Run, affine: Affine, zero_point: ByteArray | int) -> Algorithm:
    """The algorithm that runs the configured strategy.

    Args:
        run: grid, registry and configuration.
        affine: how integer features become x.
        zero_point: the integer feature that stands for 0, uint8 (d,) or the same for all.
    """
    config = run.config
    if is_stock(config.strategy.name):
        _tell_trainer(run)
        strategy = build_stock(config.strategy.name, config.strategy.args, lr=config.train.peak)
        return StockAlgorithm(run, strategy)
    own = build_strategy(config.strategy.name, config.strategy.args)
    if trains_by_gradients(own):
        _tell_trainer(run)
    own = _private(config, run.guard) if run.guard else prepared_strategy(config, own)
    return OwnAlgorithm(run, own, affine, zero_point)


def _private(config: Config, guard: Guard) -> Strategy[Any]:
    """The strategy with privacy around it, by the rule where nothing else is set."""
    name, args, decided = config.strategy.name, config.strategy.args, guard.decided
    if decided.server_lr:
        args = {**args, "server-lr": decided.server_lr}
    own = one_shot(name, args, guard.known) if guard.known else build_strategy(name, args)
    return with_privacy(own, decided.terms, guard.release)


def _tell_trainer(run: Run) -> None:
    """Say where another trainer trains than the one that is configured."""
    config, train = run.config, run.config.train
    if not run.registry.simulated or config.trainer == config.simulation.trainer:
        return
    keys = [f"train.optimizer={train.optimizer}"] if train.optimizer != "sgd" else []
    keys += [f"train.loss={train.loss}"] if train.has_own_loss else []
    logger.info("the reference trainer trains clients one by one: %s", ", ".join(keys))


def prepared_strategy(config: Config, own: Strategy[Any]) -> Strategy[Any]:
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
