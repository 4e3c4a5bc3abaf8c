"""Accuracy against privacy budgets: a line for each strategy of a setting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simulations.report.bytes_figure import band
from simulations.report.comparison import Comparison, Entry, Setting
from simulations.report.packing import EPSILON, PACKING_KEYS

__all__ = ["BudgetLine", "budget_data", "budget_lines", "budgets"]

_COLOURS = 6  # of page.css


@dataclass(frozen=True)
class BudgetLine:
    """A strategy in a setting, with its codec and projection where these are compared.

    Attributes:
        label: without the budget.
        number: of its colour and mark, the same in all settings.
        entries: by budget, which is infinite without privacy; ascending.
    """

    label: str
    number: int
    entries: Mapping[float, Entry]

    @property
    def colour(self) -> int:
        """The number of its colour."""
        return self.number % _COLOURS


def budgets(setting: Setting) -> list[float]:
    """Budgets of a setting's entries, ascending."""
    return sorted({float(entry.packing.epsilon) for entry in setting.entries})


def budget_lines(comparison: Comparison, setting: Setting) -> list[BudgetLine]:
    """A line for each strategy, in the order of the tables."""
    every = [entry for s in comparison.settings for entry in comparison.in_order(s)]
    axes = [key for key in comparison.axes if key != EPSILON]
    numbers = {name: i for i, name in enumerate(dict.fromkeys(_name(e, axes) for e in every))}
    own: dict[str, dict[float, Entry]] = {}
    for entry in comparison.in_order(setting):
        own.setdefault(_name(entry, axes), {})[float(entry.packing.epsilon)] = entry
    return [
        BudgetLine(name, numbers[name], dict(sorted(entries.items())))
        for name, entries in own.items()
    ]


def _name(entry: Entry, axes: Sequence[str]) -> str:
    words = zip(PACKING_KEYS, entry.packing, strict=True)
    return " · ".join([entry.strategy, *(word for key, word in words if key in axes)])


def budget_data(comparison: Comparison, setting: Setting) -> list[dict[str, Any]]:
    """What the page's script draws: of each line its points, and what it has without privacy."""
    return [
        {
            "label": line.label,
            "colour": line.colour,
            "number": line.number,
            "points": [
                {"epsilon": epsilon, **_point(entry)}
                for epsilon, entry in line.entries.items()
                if math.isfinite(epsilon)
            ],
            "without": _point(line.entries[math.inf]) if math.inf in line.entries else None,
        }
        for line in budget_lines(comparison, setting)
    ]


def _point(entry: Entry) -> dict[str, float]:
    return dict(zip(("accuracy", "low", "high"), band(entry), strict=True))
