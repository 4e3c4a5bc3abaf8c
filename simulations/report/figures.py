"""What the page's figures show, as plain values for JSON; the page's script draws them.

Numbers are rounded to what a screen can tell apart, because they are most of the page's size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from common.noise import COUNTED_CLIENTS, COUNTED_EXAMPLES, wilson
from simulations.report.budget_figure import budget_data
from simulations.report.bytes_figure import bytes_data
from simulations.report.comparison import Comparison, Entry, Setting
from simulations.report.confusion import matrix
from simulations.report.leaderboard import standard

__all__ = [
    "LineStyle",
    "counted_clients",
    "figure_data",
    "line_styles",
    "metric_names",
    "yardsticks",
]

_COLOURS = 6
"""How many --series colours page.css has; then the same ones come with the next dash."""
_DASHES = ("solid", "dash", "dot", "dashdot")
_PACKING_DASHES = (*_DASHES, "longdash", "longdashdot")

_DIGITS = 4
_BINS = 20
_MAX_CLIENTS = 400
"""Beyond, an even sample of them is shown."""

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LineStyle:
    """How a strategy is drawn: the number of its colour, and plotly's name of its dash."""

    colour: int
    dash: str


def line_styles(comparison: Comparison) -> dict[str, LineStyle]:
    """Each strategy's own, the same in all settings.

    Where codecs, projections or budgets are compared, a strategy keeps its colour and they have the
    dashes.
    """
    if comparison.axes:
        return _packed_styles(comparison)
    return {
        label: LineStyle(number % _COLOURS, _DASHES[number // _COLOURS % len(_DASHES)])
        for number, label in enumerate(comparison.strategies)
    }


def _packed_styles(comparison: Comparison) -> dict[str, LineStyle]:
    entries = {entry.label: entry for s in comparison.settings for entry in s.entries}
    every = [entries[label] for label in comparison.strategies]
    strategies = list(dict.fromkeys(entry.strategy for entry in every))
    packings = list(dict.fromkeys(entry.packing for entry in every))
    styles = {}
    for entry in every:
        strategy = strategies.index(entry.strategy)
        dash = strategy // _COLOURS + packings.index(entry.packing)
        dashes = _PACKING_DASHES[dash % len(_PACKING_DASHES)]
        styles[entry.label] = LineStyle(strategy % _COLOURS, dashes)
    return styles


def yardsticks(setting: Setting, target: float | None) -> list[dict[str, Any]]:
    """The lines that a setting's curves are seen against.

    A strategy alone has a target only if somebody asked for one: what is the best's share of
    itself?
    """
    against = standard(setting, target)
    lines = (
        ("centralized", against.centralized, "dash"),
        ("ridge", against.ridge, "dot"),
        ("target", against.target if target or len(setting.entries) > 1 else None, "dashdot"),
    )
    return [
        {"name": name, "value": value, "dash": dash}
        for name, value, dash in lines
        if value is not None
    ]


def figure_data(comparison: Comparison, target: float | None) -> list[dict[str, Any]]:
    """For each setting its curves, distributions and matrices."""
    styles = line_styles(comparison)
    settings = [_setting(setting, target, styles) for setting in comparison.settings]
    if comparison.packed:
        for drawn, setting in zip(settings, comparison.settings, strict=True):
            drawn["bytes"] = bytes_data(setting)
    if comparison.budgeted:
        for drawn, setting in zip(settings, comparison.settings, strict=True):
            drawn["budgets"] = budget_data(comparison, setting)
    return settings


def _setting(
    setting: Setting, target: float | None, styles: Mapping[str, LineStyle]
) -> dict[str, Any]:
    winner = setting.entries[0]
    return {
        "yardsticks": yardsticks(setting, target),
        "classes": list(setting.classes),
        "entries": [
            {
                "label": entry.label,
                **asdict(styles[entry.label]),
                **_curve(entry),
                **_boxes(entry),
                "metrics": _metric_curves(entry),
            }
            for entry in setting.entries
        ],
        "confusion": matrix(setting),
        "partition": _partition(winner),
        "metrics": metric_names(setting),
    }


def metric_names(setting: Setting) -> list[str]:
    """The strategies' own metrics, a plot each."""
    return sorted({name for run in setting.runs for name in run.metrics})


def _metric_curves(entry: Entry) -> dict[str, dict[str, Any]]:
    """Mean of each of the strategy's own metrics over the seeds, in the rounds that all have it."""
    curves = {}
    for name in dict.fromkeys(name for run in entry.runs for name in run.metrics):
        rounds = min(len(run.accuracy) for run in entry.runs)
        missing = np.full(rounds, np.nan)
        values = np.stack([run.metrics.get(name, missing)[:rounds] for run in entry.runs]).mean(0)
        known = np.flatnonzero(~np.isnan(values))
        curves[name] = {
            "rounds": (known + 1).tolist(),
            "values": [float(f"{value:.5g}") for value in values[known]],
        }
    return curves


def _curve(entry: Entry) -> dict[str, Any]:
    """Mean accuracy with its band, and mean cumulative uplink, if it is known, after each round.

    The band reaches from the lowest to the highest seed, and at least as far as the test examples
    of one run leave the mean uncertain.

    Runs of one entry may end after different rounds, when clients failed: the curve ends with
    the shortest, so that all of it is over all seeds.
    """
    rounds = min(len(run.accuracy) for run in entry.runs)
    accuracy = np.stack([run.accuracy[:rounds] for run in entry.runs])
    uplink = [run.uplink[:rounds] for run in entry.runs if run.uplink is not None]
    is_known = len(uplink) == len(entry.runs)
    curve = {
        "accuracy": _rounded(accuracy.mean(0)),
        "uplink": np.rint(np.mean(uplink, 0)).astype(np.int64).tolist() if is_known else [],
    }
    tests = min(run.test_examples for run in entry.runs)
    chance = np.array([wilson(mean, tests) for mean in accuracy.mean(0)])
    low, high = np.minimum(accuracy.min(0), chance[:, 0]), np.maximum(accuracy.max(0), chance[:, 1])
    return {**curve, "low": _rounded(low), "high": _rounded(high)}


def _boxes(entry: Entry) -> dict[str, Any]:
    """Accuracy over the clients of all seeds together, of the global and the personal heads.

    Only of clients with enough test examples, and where these are enough.
    """
    clients = [run.clients for run in entry.runs if run.clients]
    personal = [one.personal for one in clients if one.personal is not None]
    return {
        "clients": _box([one.accuracy for one in clients]),
        "personal": _box(personal) if len(personal) == len(clients) else None,
        "spread": _spread([one.accuracy for one in clients]),
        "personal_spread": _spread(personal) if len(personal) == len(clients) else None,
    }


def _box(rates: Sequence[_Floats]) -> list[float] | None:
    """Lowest, 10th percentile, quartiles, highest and mean; None of too few clients."""
    every = np.concatenate(rates) if rates else np.zeros(0)
    if every.size < COUNTED_CLIENTS:
        return None
    return _rounded(np.array([*np.percentile(every, [0, 10, 25, 50, 75, 100]), every.mean()]))


def _spread(rates: Sequence[_Floats]) -> list[int] | None:
    """How many clients have 0 to 5 %, 5 to 10 %, ... 95 to 100 %; None of too few clients."""
    every = np.concatenate(rates) if rates else np.zeros(0)
    if every.size < COUNTED_CLIENTS:
        return None
    # Rounded first: 0.15 * 20 is 3 and not the 2.9999999999999996 that floats make of it.
    bins = np.minimum(np.floor(np.round(every * _BINS, 9)), _BINS - 1).astype(np.int64)
    return [int(count) for count in np.bincount(bins, minlength=_BINS)]


def counted_clients(setting: Setting) -> str:
    """How many clients the boxes show, or why there are none; empty where nobody knows."""
    clients = [run.clients for run in setting.entries[0].runs if run.clients]
    if not clients:
        return ""
    tests = np.concatenate([one.tests for one in clients])
    enough = int((tests >= COUNTED_EXAMPLES).sum())
    who = f"{enough:,} of {len(tests):,} clients have {COUNTED_EXAMPLES} or more test images"
    span = f"of their own (all have {tests.min():,} to {tests.max():,})"
    if enough < COUNTED_CLIENTS:
        return (
            f"{who} {span}. Of fewer an accuracy shows who was lucky, so nothing is drawn; "
            "a larger partition.test-fraction gives each more."
        )
    return f"{who} {span}; only these are drawn."


def _rounded(values: _Floats) -> list[float]:
    return [round(float(value), _DIGITS) for value in values]


def _partition(entry: Entry) -> dict[str, Any] | None:
    """Who holds how much of which class; clients of the same main class side by side."""
    run = next((run for run in entry.runs if run.clients), None)
    if run is None or run.clients is None:
        return None
    counts, ids = run.clients.label_counts, run.clients.ids
    order = np.lexsort((ids, -counts.max(axis=1), counts.argmax(axis=1)))
    if len(order) > _MAX_CLIENTS:
        order = order[np.linspace(0, len(order) - 1, _MAX_CLIENTS).astype(np.int64)]
    return {
        "seed": run.seed,
        "all": len(ids),
        "most": int(counts.max()),
        "ids": ids[order].tolist(),
        "counts": counts[order].T.tolist(),
    }
