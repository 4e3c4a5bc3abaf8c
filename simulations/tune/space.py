"""What is searched: keys of the experiment, each with a range or with choices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.config import Config, changed
from common.errors import ConfigError
from common.keys import flat, nested
from server.round.stock import is_stock
from server.strategies import build_strategy
from simulations.compare.cells import StrategySpec

__all__ = [
    "ARGS",
    "NAME",
    "Choices",
    "Range",
    "Space",
    "edges_of",
    "misfits",
    "own_values",
    "strategy_of",
    "with_values",
]

NAME, ARGS = "strategy.name", "strategy.args."

_EDGE = 0.02  # of a range's length

Value = Any  # of a key in TOML: a number, a text, true or false


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included.

    Attributes:
        low: the smallest.
        high: the largest; whole numbers if both ends are.
        step: between whole numbers, or between others where it is set.
        log: whether ratios count, and not differences.
    """

    low: float
    high: float
    step: float | None = None
    log: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether its numbers are whole ones."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def samples(self) -> tuple[Value, ...]:
        """Values that must be fit for the experiment."""
        return self.low, self.high

    def holds(self, value: Value) -> bool:
        """Whether it is one of them."""
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            return False
        if not self.low <= value <= self.high or (self.is_whole and not isinstance(value, int)):
            return False
        steps = (value - self.low) / self.step if self.step else 0.0
        return abs(steps - round(steps)) < 1e-9

    def edge(self, value: Value) -> float | None:
        """The end at which a value lies; None: it lies within.

        >>> Range(0.001, 1.0, log=True).edge(0.99), Range(1, 10).edge(2)
        (1.0, None)
        """
        scale = math.log if self.log else float
        low, high, at = scale(self.low), scale(self.high), scale(value)
        near = 0.0 if self.is_whole else _EDGE * (high - low)
        return self.low if at <= low + near else self.high if at >= high - near else None


@dataclass(frozen=True)
class Choices:
    """Some values, of which none is nearer to another.

    Attributes:
        values: two at least.
    """

    values: tuple[Value, ...]

    @property
    def samples(self) -> tuple[Value, ...]:
        """Values that must be fit for the experiment."""
        return self.values

    def holds(self, value: Value) -> bool:
        """Whether it is one of them; 1 is not true."""
        return any(type(v) is type(value) and v == value for v in self.values)

    def edge(self, value: Value) -> float | None:
        """The end of the numbers at which a value lies; None: it lies within, or there is none."""
        if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in self.values):
            return None
        return value if len(self.values) > 2 and value in _ends(self.values) else None


Space = Mapping[str, Range | Choices]


def _ends(values: tuple[Value, ...]) -> tuple[Value, Value]:
    return min(values), max(values)


def with_values(base: Config, values: Mapping[str, Value]) -> Config:
    """The experiment with other values.

    Raises:
        ConfigError: they do not fit.
    """
    if values.get(NAME, base.strategy.name) != base.strategy.name:
        # The experiment's own arguments are meant for its own strategy.
        without = base.strategy.model_copy(update={"args": {}})
        base = base.model_copy(update={"strategy": without})
    return changed(base, nested(values))


def strategy_of(name: str) -> StrategySpec:
    """A strategy by its name in the experiment."""
    return StrategySpec(name, name, ())


def misfits(base: Config, key: str, dimension: Range | Choices, names: list[str]) -> list[str]:
    """What of a dimension the experiment cannot take."""
    argument = key.removeprefix(ARGS)
    problems: list[str] = []
    if argument != key:
        takers = [name for name in names if argument in strategy_of(name).arguments]
        if not takers:
            return [f"{key}: no strategy here has it ({', '.join(names)})"]
        for name in (name for name in takers if not is_stock(name)):
            for value in dimension.samples:
                try:
                    build_strategy(name, {argument: value})
                except ConfigError as exc:
                    problems += exc.problems
        return problems
    for value in dimension.samples:
        try:
            with_values(base, {key: value})
            if key == NAME and not is_stock(value):
                build_strategy(value)
        except ConfigError as exc:
            problems += exc.problems
    return problems


def own_values(base: Config, space: Space) -> Mapping[str, Value] | None:
    """The experiment's own place in a space; None: it lies beyond."""
    values = flat(base.model_dump(by_alias=True))
    defaults = strategy_of(base.strategy.name).defaults
    own = {}
    for key, dimension in space.items():
        if key.startswith(ARGS) and key.removeprefix(ARGS) not in defaults:
            continue  # of another strategy
        own[key] = values.get(key, defaults.get(key.removeprefix(ARGS)))
        if not dimension.holds(own[key]):
            return None
    return own


def edges_of(values: Mapping[str, Value], base: Config, space: Space) -> dict[str, float]:
    """Values at an end of their range beyond which the experiment would take others, by key."""
    name = str(values.get(NAME, base.strategy.name))
    found = {}
    for key, value in values.items():
        end = space[key].edge(value)
        if end is not None:
            below = end == min(space[key].samples)
            beyond = (end / 2 if end > 0 else end - 1) if below else end * 2 + (end <= 0)
            beyond = int(beyond) if isinstance(end, int) else beyond
            if not misfits(base, key, Choices((beyond,)), [name]):
                found[key] = end
    return found
