"""The strategies by name."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from common.errors import ConfigError
from common.types import Affine
from server.strategies.averaging import fedavg, fedprox
from server.strategies.closed_form import fed3r
from server.strategies.scaffold import scaffold
from server.strategies.wrappers import norm_clipping
from server.strategy import Strategy

__all__ = ["STRATEGIES", "build_strategy"]

STRATEGIES: Mapping[str, Callable[..., Strategy[Any]]] = {
    "fedavg": fedavg,
    "fedprox": fedprox,
    "scaffold": scaffold,
    "fed3r": fed3r,
    "norm_clipping": norm_clipping,
}
_FROM_RUN = ("num_clients", "affine", "name")
_POSITIVE = ("lam", "bound")


def build_strategy(
    name: str, args: Mapping[str, Any], *, num_clients: int, affine: Affine
) -> Strategy[Any]:
    """Make a strategy from its name and its [strategy.args], kebab-case keys.

    ``num_clients`` and ``affine`` go to the strategies that ask for them.

    Raises:
        ConfigError: unknown name or argument, with the nearest known one; a wrong type.
    """
    factory = STRATEGIES.get(name)
    if factory is None:
        near = difflib.get_close_matches(name, STRATEGIES, n=1)
        hint = f", did you mean {near[0]}?" if near else ""
        known = ", ".join(STRATEGIES)
        raise ConfigError([f"unknown strategy.name {name!r}{hint} (known: {known})"])
    parameters = inspect.signature(factory).parameters
    known_args = [key.replace("_", "-") for key in parameters if key not in _FROM_RUN]
    problems, given = [], {}
    for key, value in args.items():
        parameter = parameters.get(key.replace("-", "_"))
        if key not in known_args or parameter is None:
            known = ", ".join(known_args)
            problems.append(f"unknown strategy.args.{key} for {name} (known: {known})")
        elif isinstance(parameter.default, bool) != isinstance(value, bool) or not isinstance(
            value, (int, float)
        ):
            kind = "true or false" if isinstance(parameter.default, bool) else "a number"
            problems.append(f"strategy.args.{key}={value!r} must be {kind}")
        elif not math.isfinite(value) or value < 0 or (parameter.name in _POSITIVE and value == 0):
            bound = "above 0" if parameter.name in _POSITIVE else "at least 0"
            problems.append(f"strategy.args.{key}={value!r} must be finite and {bound}")
        else:
            given[parameter.name] = value
    if problems:
        raise ConfigError(problems)
    run = {"num_clients": num_clients, "affine": affine}
    return factory(**given, **{key: run[key] for key in run if key in parameters})
