"""Accuracy against bytes: what each row of a setting costs, and which of them nobody beats."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.noise import wilson
from common.words import byte_text
from simulations.report.columns import percent, points
from simulations.report.comparison import Entry, Setting
from simulations.report.pareto import on_front
from simulations.report.runs import Run

__all__ = ["Kept", "Traffic", "band", "bytes_data", "kept", "traffics"]

_DIGITS = 4


@dataclass(frozen=True)
class Traffic:
    """A way to count what the rows of a setting cost.

    Attributes:
        name: for a button.
        axis: what is counted.
        costs: bytes, in the order of the setting's entries; None of one that does not tell them.
        front: whether each of them is on the Pareto front.
    """

    name: str
    axis: str
    costs: tuple[float | None, ...]
    front: tuple[bool, ...]


@dataclass(frozen=True)
class Kept:
    """A row of the front, in words.

    Attributes:
        to_best: points to the most accurate row.
        share: of this row's bytes.
    """

    label: str
    accuracy: str
    cost: str
    to_best: str
    share: str


def traffics(setting: Setting) -> list[Traffic]:
    """Uplink of the whole run, and with downlink where every run knows it.

    Bytes are a client's, on average, where it is known how many there were, else all clients'.
    """
    counts = {run.summary.clients for run in setting.runs}
    clients = counts.pop() if len(counts) == 1 else None
    who = "a client" if clients else "all clients"
    found = [_traffic(setting, "up", f"bytes that {who} sent in the run", _up, clients or 1)]
    if all(run.summary.downlink_bytes is not None for run in setting.runs):
        axis = f"bytes that {who} sent and got in the run"
        found.append(_traffic(setting, "up and down", axis, _up_and_down, clients or 1))
    return found


def _traffic(
    setting: Setting, name: str, axis: str, count: Callable[[Run], int | None], clients: int
) -> Traffic:
    costs = tuple(_cost([count(run) for run in entry.runs], clients) for entry in setting.entries)
    values = [_accuracy(entry) for entry in setting.entries]
    return Traffic(name, axis, costs, tuple(on_front(costs, values)))


def _cost(counts: Sequence[int | None], clients: int) -> float | None:
    known = [count for count in counts if count is not None]
    return float(np.mean(known)) / clients if len(known) == len(counts) else None


def _up(run: Run) -> int | None:
    return None if run.uplink is None else int(run.uplink[-1])


def _up_and_down(run: Run) -> int | None:
    up = _up(run)
    return None if up is None else up + (run.summary.downlink_bytes or 0)


def _accuracy(entry: Entry) -> float:
    return float(np.mean(entry.accuracies))


def kept(setting: Setting, traffic: Traffic) -> Sequence[Kept]:
    """The rows of the front, the fewest bytes first: accuracy rises with them."""
    columns = zip(traffic.costs, setting.entries, traffic.front, strict=True)
    rows = sorted(
        ((cost, entry) for cost, entry, is_kept in columns if is_kept and cost is not None),
        key=lambda row: (row[0], row[1].label),
    )
    if not rows:
        return []
    most, best = rows[-1]
    return [
        Kept(
            entry.label,
            percent(_accuracy(entry)),
            byte_text(cost),
            points(_accuracy(entry) - _accuracy(best)),
            _share(cost, most),
        )
        for cost, entry in rows
    ]


def _share(cost: float, most: float) -> str:
    """A part of the bytes as a fraction of one.

    >>> _share(10, 1000), _share(400, 1000), _share(0, 1000), _share(1000, 1000)
    ('1/100', '1/2.5', '0', 'all')
    """
    if cost == most:
        return "all"
    return (
        f"1/{most / cost:.{0 if most >= 9.95 * cost else 1}f}".removesuffix(".0") if cost else "0"
    )


def bytes_data(setting: Setting) -> dict[str, Any]:
    """What the page's script draws, entry by entry as the setting has them."""
    bands = [list(band(entry)) for entry in setting.entries]
    return {
        "rows": [
            {"label": entry.label, "strategy": entry.strategy, "accuracy": y, "low": a, "high": b}
            for entry, (y, a, b) in zip(setting.entries, bands, strict=True)
        ],
        "traffics": [
            {
                "axis": traffic.axis,
                "costs": [None if c is None else float(f"{c:.4g}") for c in traffic.costs],
                "front": list(traffic.front),
            }
            for traffic in traffics(setting)
        ],
    }


def band(entry: Entry) -> Iterator[float]:
    """Mean accuracy, then the ends of what its whisker reaches over, as a curve's band does."""
    mean = _accuracy(entry)
    low, high = wilson(mean, min(run.test_examples for run in entry.runs))
    for value in (mean, min(low, *entry.accuracies), max(high, *entry.accuracies)):
        yield round(float(value), _DIGITS)
