"""A search space as a file or a mapping has it, or where nothing is said.

It looks like the experiment, with a table in place of each value that is searched::

    [train]
    lr = { low = 0.003, high = 1.0, log = true }
    local-epochs = { low = 1, high = 9, step = 2 }
    batch-size = { choices = [5, 10, 20] }
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from common.config import Config
from common.errors import ConfigError
from server.round.stock import is_stock
from server.strategies import build_strategy
from simulations.tune.space import ARGS, NAME, Choices, Range, Space, misfits, strategy_of

__all__ = ["default_space", "read_space"]

# What says which task is to be solved, or where: a search for the easiest one helps nobody.
_TASK = ("name", "seed", "out", "data.", "partition.", "availability.", "attack.", "baseline.",
         "tracking.")  # fmt: skip
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
    names = space[NAME].samples if NAME in space else (base.strategy.name,)
    for key, dimension in space.items():
        problems += misfits(base, key, dimension, [str(name) for name in names])
    if not space and not problems:
        problems = ["it is empty: nothing is searched"]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)), where)
    first = {key: space[key] for key in space if key == NAME}  # its arguments depend on it
    return {**first, **space}


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        is_section = isinstance(value, Mapping) and not (value and value.keys() <= _KEYS)
        if is_section and any(isinstance(inner, Mapping) for inner in value.values()):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _dimension(key: str, leaf: Any) -> Range | Choices:
    if isinstance(leaf, Range | Choices):
        return leaf
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
    low: Any = leaf.get("low")  # looked at below
    high: Any = leaf.get("high")
    step, log = leaf.get("step"), leaf.get("log", False)
    numbers = [low, high] if step is None else [low, high, step]
    if any(not isinstance(n, (int, float)) or isinstance(n, bool) for n in numbers):
        raise ConfigError([f"{key}: low, high and step must be numbers"])
    if not low < high or (step is not None and step <= 0):
        raise ConfigError([f"{key}: low={low} must be below high={high}, and step above 0"])
    if not isinstance(log, bool) or (log and (low <= 0 or step is not None)):
        raise ConfigError([f"{key}: log=true needs a low above 0, and no step"])
    if isinstance(low, int) != isinstance(high, int):
        low, high = float(low), float(high)
    return Range(low, high, step, log)


def default_space(base: Config) -> Space:
    """What is searched where nothing is said: how clients train, and the strategy's own numbers.

    The learning rate within a factor of 20, each positive argument of the strategy within one of
    10, where the strategy takes both ends.

    Raises:
        ConfigError: the strategy has no such numbers.
    """
    name, train = base.strategy.name, base.train
    spec = strategy_of(name)
    space: dict[str, Range | Choices] = {}
    if spec.has_gradients:
        space["train.lr"] = Range(train.lr / 20, train.lr * 20, log=True)
        space["train.local-epochs"] = Range(1, max(10, train.local_epochs))
        sizes = sorted({5, 10, 20, 50, train.batch_size})
        space["train.batch-size"] = Choices(tuple(sizes))
        if is_stock(name) or not build_strategy(name).plain_sgd:
            space["train.momentum"] = Range(0.0, max(0.95, train.momentum))
    for argument, default in ({} if is_stock(name) else spec.defaults).items():
        value = base.strategy.args.get(argument, default)
        if isinstance(value, float) and value > 0:
            around = Range(value / 10, value * 10, log=True)
            if not misfits(base, f"{ARGS}{argument}", around, [name]):
                space[f"{ARGS}{argument}"] = around
    if not space:
        raise ConfigError([f"{name} has no numbers to search: a space says what to try"])
    return space
