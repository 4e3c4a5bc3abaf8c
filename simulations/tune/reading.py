"""A search space as a file or a mapping has it, or where nothing is said.

It looks like the experiment, with a table in place of each value that is searched::

    [train]
    lr = { low = 0.003, high = 1.0, log = true }
    local-epochs = { low = 1, high = 9, step = 2 }
    batch-size = { choices = [5, 10, 20] }
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from common.config import Config
from common.errors import ConfigError
from common.toml_model import read_toml
from server.round.stock import is_stock
from server.strategies import build_strategy
from simulations.tune.space import ARGS, NAME, Choices, Range, Space, misfits, strategy_of

__all__ = ["default_space", "read_space", "space_of"]

# What says which task is to be solved, or where: a search for the easiest one helps nobody.
_TASK = ("name", "seed", "out", "data.", "partition.", "availability.", "attack.", "baseline.",
         "tracking.", "train.rounds", "train.clients", "strategy.init-from")  # fmt: skip
# Where the strategy chooses a number itself: for a penalty, and for a share, which takes no 3000.
_CHOSEN = Range(1.0, 3000.0, log=True), Range(0.001, 1.0, log=True)
_KEYS = {"low", "high", "step", "log", "choices"}


def read_space(content: Mapping[str, Any], base: Config, where: str = "search space") -> Space:
    """A search space, as a file or a mapping has it; dotted keys may stand for sections.

    Args:
        content: see the module.
        base: the experiment that it is for.
        where: the file's name, for the error.

    Raises:
        ConfigError: with all problems: keys the experiment does not have or that must not be
            searched, ranges that are none, values that do not fit.
    """
    space: dict[str, Range | Choices] = {}
    problems: list[str] = []
    for key, leaf in _leaves(content):
        try:
            space[key] = _dimension(key, leaf)
        except ConfigError as exc:
            problems += exc.problems
    names = [str(n) for n in (space[NAME].samples if NAME in space else (base.strategy.name,))]
    for key, dimension in space.items():
        found = misfits(base, key, dimension, names)
        if not found and isinstance(dimension, Range):
            try:
                space[key] = _of_its_type(base, key, dimension, names)
            except ConfigError as exc:
                found = [*exc.problems]
        problems += found
    if not space and not problems:
        problems = ["it is empty: nothing is searched"]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)), where)
    first = {key: space[key] for key in space if key == NAME}  # its arguments depend on it
    return {**first, **space}


def space_of(file: Path | None, base: Config) -> Space:
    """The search space in a TOML file; None: what is searched where nothing is said.

    Raises:
        ConfigError: see ``read_space`` and ``default_space``.
    """
    return default_space(base) if file is None else read_space(read_toml(file), base, str(file))


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and any(isinstance(v, Mapping) for v in value.values()):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _dimension(key: str, leaf: Any) -> Range | Choices:
    if isinstance(leaf, Choices):
        leaf = {"choices": [*leaf.values]}
    elif isinstance(leaf, Range):
        leaf = {name: value for name, value in vars(leaf).items() if value is not None}
    if any(key == word or (word.endswith(".") and key.startswith(word)) for word in _TASK):
        raise ConfigError([f"{key} is part of the task, and is not searched"])
    if not isinstance(leaf, Mapping) or not leaf.keys() <= _KEYS:
        raise ConfigError(
            [f"{key}: expected {{low=..., high=..., step=..., log=...}} or {{choices=[...]}}"]
        )
    if "choices" in leaf:
        values = leaf["choices"]
        if leaf.keys() > {"choices"} or not isinstance(values, list) or len(values) < 2:
            raise ConfigError([f"{key}: choices must be a list of two values or more, alone"])
        return Choices(tuple(values))
    return _range(key, leaf)


def _range(key: str, leaf: Mapping[str, Any]) -> Range:
    low: Any = leaf.get("low")  # looked at below
    high: Any = leaf.get("high")
    step, log = leaf.get("step"), leaf.get("log", False)
    numbers = [low, high] if step is None else [low, high, step]
    if any(not isinstance(n, (int, float)) or isinstance(n, bool) for n in numbers):
        raise ConfigError([f"{key}: low, high and step must be numbers"])
    if not low < high or (step is not None and step <= 0):
        raise ConfigError([f"{key}: low={low} must be below high={high}, and step above 0"])
    if step is not None and step > high - low:
        raise ConfigError([f"{key}: step={step} leads beyond high={high} at once"])
    if not isinstance(log, bool) or (log and (low <= 0 or step is not None)):
        raise ConfigError([f"{key}: log=true needs a low above 0, and no step"])
    if isinstance(low, int) != isinstance(high, int):
        low, high = float(low), float(high)
    # The last that steps from the lowest lead to: Optuna would warn of another.
    beyond = (high - low) % step if step is not None else 0
    is_met = step is None or min(beyond, step - beyond) < 1e-9 * step
    return Range(low, high if is_met else high - beyond, step, log)


def _of_its_type(base: Config, key: str, found: Range, names: list[str]) -> Range:
    """The range of whole numbers where the experiment takes no others, else of any numbers.

    Raises:
        ConfigError: its step is none between whole numbers.
    """
    low, high, step = found.low, found.high, found.step
    if _takes_fractions(base, key, found, names):
        return dataclasses.replace(found, low=float(low), high=float(high))
    if step is not None and not float(step).is_integer():
        raise ConfigError([f"{key} is a whole number: step={step} must be one, too"])
    return found


def _takes_fractions(base: Config, key: str, found: Range, names: list[str]) -> bool:
    if not (float(found.low).is_integer() and float(found.high).is_integer()):
        return True  # it takes the ends
    if misfits(base, key, Choices((found.low + 0.5, found.high - 0.5)), names):
        return False
    if not (key.startswith(ARGS) and found.is_whole):
        return True
    # An argument may be of no type: what it is by default says what is meant.
    defaults = [strategy_of(name).defaults.get(key.removeprefix(ARGS)) for name in names]
    return any(isinstance(default, float) for default in defaults)


def default_space(base: Config) -> Space:
    """What is searched where nothing is said: how clients train, and the strategy's own numbers.

    The learning rate within a factor of 20, or from 0.001 to 1 where runs choose it. Each positive
    argument of the strategy within one of 10, where the strategy takes both ends. Where the
    strategy chooses it, a penalty is searched from 1 to 3000 and a share from 0.001 to 1.

    Raises:
        ConfigError: the strategy has no such numbers.
    """
    name, train = base.strategy.name, base.train
    spec = strategy_of(name)
    space: dict[str, Range | Choices] = {}
    if spec.has_gradients:
        # Where runs choose the rate, the search takes what has been best on any data.
        low, high = (0.001, 1.0) if train.lr == "auto" else (train.lr / 20, train.lr * 20)
        space["train.lr"] = Range(low, high, log=True)
        space["train.local-epochs"] = Range(1, max(10, train.local_epochs))
        sizes = sorted({5, 10, 20, 50, train.batch_size})
        space["train.batch-size"] = Choices(tuple(sizes))
        if is_stock(name) or not build_strategy(name).plain_sgd:
            space["train.momentum"] = Range(0.0, max(0.95, train.momentum))
    for argument, default in ({} if is_stock(name) else spec.defaults).items():
        if isinstance(default, float) or default == "auto":
            key, ranges = f"{ARGS}{argument}", _around(base.strategy.args.get(argument, default))
            if fitting := [found for found in ranges if not misfits(base, key, found, [name])]:
                space[key] = fitting[0]
    if not space:
        raise ConfigError([f"{name} has no numbers to search: a space says what to try"])
    return space


def _around(value: object) -> tuple[Range, ...]:
    """What may be searched for an argument of this value."""
    if value == "auto":
        return _CHOSEN
    if not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0:
        return ()
    return (Range(value / 10, value * 10.0, log=True),)
