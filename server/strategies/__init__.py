"""The strategies by name."""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from common.errors import ConfigError
from common.types import Affine, Head
from server.strategies.adaptive import fedadagrad, fedadam, fedavgm, fedyogi
from server.strategies.averaging import fedavg, fedprox
from server.strategies.closed_form import afl, ditto, fed3r, fedcof, fedncm, lda
from server.strategies.feddyn import feddyn
from server.strategies.normalized import fednova, qfedavg
from server.strategies.robust import (
    bulyan,
    centered_clipping,
    geometric_median,
    krum,
    median,
    multikrum,
    trimmed_mean,
)
from server.strategies.scaffold import scaffold
from server.strategies.wrappers import norm_clipping
from server.strategy import Strategy

__all__ = [
    "STRATEGIES",
    "arguments",
    "build_strategy",
    "import_strategy",
    "sketch",
    "strategy_factory",
    "trains_by_gradients",
]

STRATEGIES: Mapping[str, Callable[..., Strategy[Any]]] = {
    strategy.__name__: strategy
    for strategy in (
        fedavg, fedprox, fedavgm, fedadagrad, fedadam, fedyogi, qfedavg, fednova, scaffold, feddyn,
        median, trimmed_mean, krum, multikrum, bulyan, geometric_median, centered_clipping,
        norm_clipping, fedncm, fed3r, afl, lda, fedcof, ditto,
    )
}  # fmt: skip
_FROM_RUN = ("num_clients", "affine", "zero_point", "lr", "name")
# What [strategy.args] may be, by name: the same name means the same in every strategy.
_POSITIVE = (
    "server_lr", "lam", "personal_lam", "bound", "tau", "alpha", "radius", "nu", "shrinkage",
    "iterations",
)  # fmt: skip
_AT_MOST_ONE = ("shrinkage",)
_BELOW = {"momentum": 1.0, "beta1": 1.0, "beta2": 1.0, "byzantine": 0.5}


def arguments(factory: Callable[..., object]) -> dict[str, Any]:
    """What [strategy.args] may hold for a strategy, kebab-case, with the defaults."""
    parameters = inspect.signature(factory).parameters
    return {
        key.replace("_", "-"): parameter.default
        for key, parameter in parameters.items()
        if key not in _FROM_RUN
    }


def build_strategy(
    name: str,
    args: Mapping[str, Any],
    *,
    num_clients: int,
    affine: Affine,
    lr: float,
    zero_point: int = 0,
) -> Strategy[Any]:
    """Make a strategy from its name or import path and its [strategy.args], kebab-case keys.

    ``num_clients``, ``affine``, the clients' ``lr`` and the features' ``zero_point`` go to the
    strategies that ask for them.

    Raises:
        ConfigError: unknown name or argument, with the nearest known one; a value that is no
            number, or out of its range.
    """
    factory = strategy_factory(name)
    parameters = inspect.signature(factory).parameters
    known_args = list(arguments(factory))
    problems, given = [], {}
    for key, value in args.items():
        parameter = parameters.get(key.replace("-", "_"))
        if key not in known_args or parameter is None:
            known = ", ".join(known_args) or "none"
            problems.append(f"unknown strategy.args.{key} for {name} (known: {known})")
        elif problem := _problem(parameter.name, value, isinstance(parameter.default, bool)):
            problems.append(f"strategy.args.{key}={value!r} must be {problem}")
        else:
            given[parameter.name] = value
    if problems:
        raise ConfigError(problems)
    run = {"num_clients": num_clients, "affine": affine, "zero_point": zero_point, "lr": lr}
    strategy = factory(**given, **{key: run[key] for key in run if key in parameters})
    if not isinstance(strategy, Strategy):
        raise ConfigError([f"{name} gives a {type(strategy).__name__}, expected a Strategy"])
    return strategy


def sketch(name: str, args: Mapping[str, Any] | None = None, lr: float = 1.0) -> Strategy[Any]:
    """A strategy before there are data: for a look at what it asks of clients.

    Raises:
        ConfigError: as ``build_strategy``.
    """
    nothing = np.zeros(0, np.float32)
    return build_strategy(name, args or {}, num_clients=1, affine=Affine(nothing, nothing), lr=lr)


def strategy_factory(name: str) -> Callable[..., Strategy[Any]]:
    """The function that makes a strategy, by its name or import path.

    Raises:
        ConfigError: unknown name, with the nearest known one; a path that leads to no function.
    """
    if ":" in name:
        return import_strategy(name)
    if name not in STRATEGIES:
        near = difflib.get_close_matches(name, STRATEGIES, n=1)
        hint = f", did you mean {near[0]}?" if near else ""
        known = ", ".join(STRATEGIES)
        raise ConfigError([f"unknown strategy.name {name!r}{hint} (known: {known})"])
    return STRATEGIES[name]


def import_strategy(path: str) -> Callable[..., Any]:
    """What ``module:name`` leads to: a function of a user's own, or one of Flower's classes.

    Raises:
        ConfigError: nowhere, or to something else.
    """
    module_name, _, attribute = path.partition(":")
    try:
        found: object = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, TypeError, ValueError) as exc:
        raise ConfigError([f"strategy.name={path!r} cannot be imported: {exc}"]) from exc
    if not callable(found):
        raise ConfigError([f"strategy.name={path!r} is neither a function nor a class"])
    return found


def trains_by_gradients(strategy: Strategy[Any]) -> bool:
    """Whether clients run SGD; false for the closed forms, which ask for statistics."""
    return strategy.plan(strategy.init(Head.zeros(2, 1)), 1).kind == "sgd"


def _problem(name: str, value: Any, is_flag: bool) -> str:
    """What a value should have been; empty if it is fine."""
    if is_flag:
        return "" if isinstance(value, bool) else "true or false"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "a number"
    below = _BELOW.get(name, math.inf)
    positive = name in _POSITIVE
    too_large = value >= below or (name in _AT_MOST_ONE and value > 1)
    if math.isfinite(value) and not too_large and (value > 0 if positive else value >= 0):
        return ""
    low = "above 0" if positive else "at least 0"
    high = " and at most 1" if name in _AT_MOST_ONE else ""
    return f"finite and {low}{f' and below {below:g}' if below < math.inf else high}"
