"""The names of figures: what is grouped under a name is NAME/KEY, everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["flattened", "own_name"]


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A line of metrics.jsonl, or a summary, without mappings in it.

    >>> flattened({"loss": 1, "strategy": {"drift": 0.5}})
    {'loss': 1, 'strategy/drift': 0.5}
    """
    leaves: dict[str, Any] = {}
    for name, value in values.items():
        nested = flattened(value, f"{prefix}{name}/") if isinstance(value, Mapping) else None
        leaves |= {prefix + name: value} if nested is None else nested
    return leaves


def own_name(metric: str) -> str:
    """What a strategy's own metric is called in tables."""
    return f"strategy/{metric}"
