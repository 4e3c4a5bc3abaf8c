"""What a line of metrics.jsonl says in single figures, whichever machine wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from server.record.figures import flattened

__all__ = ["Scalar", "round_figures"]

Scalar: TypeAlias = str | int | float | None

_ON_THE_CLOCK = ("seconds", "train-seconds")


def round_figures(line: Mapping[str, Any]) -> dict[str, Scalar]:
    """Single figures of a round; matrices and the clock's seconds are left out."""
    return {
        key: value
        for key, value in flattened(line).items()
        if key not in _ON_THE_CLOCK and (value is None or isinstance(value, int | float))
    }
