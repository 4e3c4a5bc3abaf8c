"""Every round of every run in one long table: curves.csv, for pandas, R and the like.

A row is one round of one run. No seconds that a machine took, no paths and no dates: the same
configuration gives the same bytes. What took how long is in timing.csv.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from common.files import write_atomic
from server.record.figures import own_name
from simulations.report.comparison import Comparison, load_runs
from simulations.report.labels import compared_values, partition_label, strategy_label
from simulations.report.packing import packing_columns
from simulations.report.round_figures import Scalar

__all__ = ["CurveRow", "curve_rows", "curves_csv", "write_curves"]

CurveRow: TypeAlias = Mapping[str, Scalar]


def curve_rows(comparison: Comparison) -> list[CurveRow]:
    """A row for each round of each run, in the order of the comparison's tables.

    What names a row comes first, up to "round". The other keys are those of metrics.jsonl, a
    strategy's own metric is ``strategy/NAME``. All rows have the same ones in the same order; None
    where a round has no such figure. Where codecs or projections are compared, both stand behind
    the strategy, and so does epsilon where privacy budgets are.
    """
    names = _names(comparison)
    rows = [
        {
            "run": names[run.path],
            "setting": setting.label,
            "strategy": strategy_label(run.values),
            **packing_columns(entry.packing, comparison.axes),
            "hyperparameters": entry.hyperparameters,
            "partition": partition_label(compared_values(run)),
            "seed": run.seed,
            **figures,
        }
        for setting in comparison.settings
        for entry in comparison.in_order(setting)
        for run in entry.runs
        for figures in run.rounds
    ]
    own = sorted({key for row in rows for key in row if key.startswith(own_name(""))})
    shared = dict.fromkeys(key for row in rows for key in row if key not in own)
    return [{key: row.get(key) for key in (*shared, *own)} for row in rows]


def _names(comparison: Comparison) -> dict[Path, str]:
    """Each run's folder, by as much of its path as tells it from the others."""
    paths = {run.path: run.path.resolve() for run in comparison.runs}
    most = max(len(path.parts) for path in paths.values())
    for parts in range(1, most + 1):
        names = {own: Path(*path.parts[-parts:]).as_posix() for own, path in paths.items()}
        if len({*names.values()}) == len(names):
            break
    return names


def curves_csv(comparison: Comparison) -> str:
    """The same as a file: numbers in full, "true" and "false", empty where there is none."""
    rows = curve_rows(comparison)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows([_text(value) for value in row.values()] for row in rows)
    return file.getvalue()


def _text(value: Scalar) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def write_curves(run: Path) -> Path:
    """Write a finished run's curves.csv into its folder, and say where."""
    path = run / "curves.csv"
    write_atomic(path, curves_csv(load_runs([run])).encode())
    return path
