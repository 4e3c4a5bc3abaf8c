"""Dotted keys: a tree of sections, and its leaves by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.errors import ConfigError

__all__ = ["flat", "merged", "nested"]


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping by dotted key.

    >>> flat({"seed": 1, "strategy": {"name": "fedprox", "args": {"mu": 0.1}}})
    {'seed': 1, 'strategy.name': 'fedprox', 'strategy.args.mu': 0.1}
    """
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = value
    return leaves


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by section from values by dotted key; both may stand side by side.

    >>> nested({"train.rounds": 20, "strategy": {"args": {"mu": 0.1}}, "strategy.name": "fedprox"})
    {'train': {'rounds': 20}, 'strategy': {'args': {'mu': 0.1}, 'name': 'fedprox'}}

    Raises:
        ConfigError: a key that is no text, or goes below one that has a value of its own.
    """
    tree: dict[str, Any] = {}
    for key, value in values.items():
        if not isinstance(key, str):
            raise ConfigError([f"{key!r} is no key, expected text such as 'train.rounds'"])
        value = nested(value) if isinstance(value, Mapping) else value
        for part in reversed(key.split(".")):
            value = {part: value}
        tree = merged(tree, value)
    return tree


def merged(base: Mapping[str, Any], over: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """A tree with the values of another, which win.

    Raises:
        ConfigError: a key has a value in one and keys below it in the other.
    """
    tree = dict(base)
    for key, value in over.items():
        old = tree.get(key)
        if key in tree and isinstance(old, dict) != isinstance(value, dict):
            raise ConfigError([f"'{at}{key}' has both a value of its own and keys below it"])
        tree[key] = merged(old, value, f"{at}{key}.") if isinstance(old, dict) else value
    return tree
