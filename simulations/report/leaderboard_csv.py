"""The leaderboard for programs: its columns, as CSV and as rows of plain values.

No seconds, paths or dates in leaderboard.csv: a comparison that was killed and went on gives the
same bytes as one that ran through. Seconds are in timing.csv.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from server.record.figures import own_name
from simulations.report.columns import metric_names
from simulations.report.comparison import Comparison
from simulations.report.leaderboard import Row
from simulations.report.packing import EPSILON, SIZE_KEYS, compared_keys, packing_columns

__all__ = ["Cell", "csv_text", "leaderboard_csv", "leaderboard_rows", "timing_csv"]

Cell: TypeAlias = str | int | float | tuple[int, ...] | None


@dataclass(frozen=True)
class _Column:
    """A column of leaderboard.csv.

    Attributes:
        name: kebab-case, as in metrics.jsonl; a unit that is not obvious ends it.
        value: of a row; accuracies are shares, gaps points, bytes those of all clients together.
        digits: behind the point in the file; None: not rounded.
        axes: keys of packings; it is there only where one of them is compared; empty: always.
        backdoor: whether it is there only where a run has a backdoor.
    """

    name: str
    value: Callable[[Row], Cell]
    digits: int | None = None
    axes: Collection[str] = ()
    backdoor: bool = False


_COLUMNS = (
    _Column("setting", lambda row: row.setting),
    _Column("strategy", lambda row: row.strategy),
    _Column("codec", lambda row: row.codec, axes=SIZE_KEYS),
    _Column("projection", lambda row: row.projection, axes=SIZE_KEYS),
    _Column("epsilon", lambda row: row.epsilon, axes=(EPSILON,)),
    _Column("hyperparameters", lambda row: row.hyperparameters),
    _Column("seeds", lambda row: row.seeds),
    _Column("accuracy", lambda row: row.accuracy, 6),
    _Column("accuracy-sd", lambda row: row.accuracy_sd, 6),
    _Column("backdoor-success", lambda row: row.backdoor, 6, backdoor=True),
    _Column("balanced-accuracy", lambda row: row.balanced, 6),
    _Column("test-examples", lambda row: row.test_examples),
    _Column("client-accuracy-mean", lambda row: row.mean_client, 6),
    _Column("client-accuracy-min", lambda row: row.worst_client, 6),
    _Column("client-accuracy-p10", lambda row: row.p10_client, 6),
    _Column("client-heads", lambda row: "personal" if row.personal else "global"),
    _Column("target", lambda row: row.target, 4),
    _Column("rounds-to-target", lambda row: row.rounds_to_target, 2),
    _Column("uplink-bytes-to-target", lambda row: row.uplink_to_target, 0),
    _Column("seeds-never-at-target", lambda row: row.not_reached),
    _Column("uplink-bytes", lambda row: row.uplink_bytes, 0),
    _Column("uplink-bytes-per-update", lambda row: row.update_bytes, 0, axes=SIZE_KEYS),
    _Column("on-pareto-front", lambda row: row.on_front, axes=SIZE_KEYS),
    _Column("gap-to-centralized-points", lambda row: _points(row.gap_centralized), 4),
    _Column("gap-to-ridge-points", lambda row: _points(row.gap_ridge), 4),
    _Column("rejected-updates", lambda row: row.rejected),
)


def leaderboard_rows(rows: Sequence[Row]) -> list[dict[str, Cell]]:
    """The same columns with unrounded values, and two that the file has not.

    These are ``near-best``, and ``training-seconds`` as in timing.csv. A strategy's own metrics
    are ``strategy/NAME`` and ``strategy/NAME-sd``; all rows have the same keys.
    """
    names, columns = metric_names(rows), _columns(rows)
    return [
        {
            **{column.name: column.value(row) for column in columns},
            "near-best": row.near_best,
            "training-seconds": row.seconds,
            **_metrics(row, names),
        }
        for row in rows
    ]


def _columns(rows: Sequence[Row]) -> list[_Column]:
    compared = {*compared_keys(row.packing for row in rows)}
    attacked = any(row.backdoor is not None for row in rows)
    return [
        column
        for column in _COLUMNS
        if (not column.axes or compared & {*column.axes}) and (attacked or not column.backdoor)
    ]


def leaderboard_csv(rows: Sequence[Row]) -> str:
    """A line for each row; of each of the strategies' own metrics two columns at the end."""
    names, columns = metric_names(rows), _columns(rows)
    return csv_text(
        [
            {column.name: _text(column.value(row), column.digits) for column in columns}
            | {name: _digits(value) for name, value in _metrics(row, names).items()}
            for row in rows
        ]
    )


def _metrics(row: Row, names: Sequence[str]) -> dict[str, float | None]:
    """A strategy's own metrics: the last value's mean and standard deviation."""
    cells: dict[str, float | None] = {}
    for name in names:
        mean, deviation = row.metrics.get(name, (None, None))
        cells |= {own_name(name): mean, f"{own_name(name)}-sd": deviation}
    return cells


def timing_csv(comparison: Comparison) -> str:
    """Seconds of each run by stage, as its summary has them; they differ from run to run."""
    runs = [
        (setting.label, entry, run)
        for setting in comparison.settings
        for entry in comparison.in_order(setting)
        for run in entry.runs
    ]
    stages = dict.fromkeys(stage for *_, run in runs for stage in run.summary.seconds)
    return csv_text(
        [
            {
                "setting": setting,
                "strategy": entry.strategy,
                **packing_columns(entry.packing, comparison.axes),
                "seed": run.seed,
                "rounds": len(run.accuracy),
            }
            | {
                f"{stage.replace('_', '-')}-seconds": _text(run.summary.seconds.get(stage), 3)
                for stage in stages
            }
            for setting, entry, run in runs
        ]
    )


def _points(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _text(value: Cell, digits: int | None) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    if digits is None or isinstance(value, str):
        return str(value)
    # Adding zero makes -0.0 a plain zero.
    return f"{round(value, digits) + 0.0:.{digits}f}"


def _digits(value: float | None) -> str:
    """What is of any size: six digits."""
    return "" if value is None else f"{value:.6g}"


def csv_text(lines: Sequence[Mapping[str, object]]) -> str:
    """Lines that all have the keys of the first one."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()
