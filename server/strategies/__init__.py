"""The strategies by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from common.errors import ConfigError
from common.own_code import imported
from common.types import Affine, ClientPlan, Head
from server.strategies.adaptive import fedadagrad, fedadam, fedavgm, fedyogi
from server.strategies.arguments import (
    Argument,
    argument_bounds,
    argument_names,
    arguments,
    checked_arguments,
)
from server.strategies.averaging import fedavg, fedprox
from server.strategies.class_means import fedcof, fedncm
from server.strategies.closed_form import afl, ditto, fed3r, lda
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
from server.strategy import RoundContext, Strategy

__all__ = [
    "STRATEGIES",
    "Argument",
    "argument_bounds",
    "argument_names",
    "arguments",
    "build_strategy",
    "first_plan",
    "import_strategy",
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


def build_strategy(name: str, args: Mapping[str, Any] | None = None) -> Strategy[Any]:
    """Make a strategy from its name or import path and its [strategy.args], kebab-case keys.

    Raises:
        ConfigError: the name or an argument is unknown (names the nearest), a value has a wrong
            type or is out of its range, or the function does not return a strategy.
    """
    factory = strategy_factory(name)
    given = checked_arguments(name, factory, args or {})
    try:
        strategy = factory(**given)
    except ValueError as exc:  # values that do not fit together
        raise ConfigError([f"{name}: {exc}"]) from exc
    if not isinstance(strategy, Strategy):
        raise ConfigError([f"{name} returns a {type(strategy).__name__}, expected a Strategy"])
    return strategy


def strategy_factory(name: str) -> Callable[..., Strategy[Any]]:
    """The function that makes a strategy, by its name or import path.

    Raises:
        ConfigError: the name is unknown (names the nearest), or the path is not a function's.
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
    """The object at ``module:name``: a user's own function, or a class of Flower's.

    Raises:
        ConfigError: it does not exist, or is something else.
    """
    module_name, _, attribute = path.partition(":")
    try:
        found: object = getattr(imported(module_name), attribute)
    except (ImportError, AttributeError, TypeError, ValueError) as exc:
        hint = "; strategy.root says in which folder" if _is_missing(exc, module_name) else ""
        raise ConfigError([f"strategy.name={path!r} cannot be imported: {exc}{hint}"]) from exc
    if not callable(found):
        raise ConfigError([f"strategy.name={path!r} is neither a function nor a class"])
    return found


def _is_missing(exc: Exception, module_name: str) -> bool:
    top = module_name.partition(".")[0]
    return isinstance(exc, ModuleNotFoundError) and exc.name == top


def trains_by_gradients(strategy: Strategy[Any]) -> bool:
    """Whether clients run SGD; false for closed forms, which need statistics."""
    return first_plan(strategy).kind == "sgd"


def first_plan(strategy: Strategy[Any]) -> ClientPlan:
    """The plan of the first round, for some head."""
    nothing = np.zeros(1, np.float32)
    first = RoundContext(1, 1, 1, lr=1.0, affine=Affine(nothing, nothing), zero_point=0, seed=0)
    return strategy.plan(strategy.init(Head.zeros(2, 1)), first)
