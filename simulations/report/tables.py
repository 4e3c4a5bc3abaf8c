"""The leaderboard as text: CSV for programs, Markdown for a README, a table for the terminal.

No seconds, paths or dates in the first two: a grid that was killed and went on gives the same
bytes as one that ran through.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from simulations.report.columns import byte_text, percent, points, rounds_text, shown_columns
from simulations.report.comparison import Comparison, Setting
from simulations.report.leaderboard import Row, leaderboard, standard

__all__ = [
    "leaderboard_csv",
    "leaderboard_markdown",
    "rows_by_setting",
    "standard_text",
    "terminal_table",
    "timing_csv",
]


def rows_by_setting(
    comparison: Comparison, target: float | None
) -> list[tuple[Setting, list[Row]]]:
    """The leaderboard, cut into one for each setting."""
    rows = leaderboard(comparison, target)
    return [(s, [row for row in rows if row.setting == s.label]) for s in comparison.settings]


def standard_text(setting: Setting, target: float | None) -> str:
    """One line: the target, where it comes from, and the heads of undivided data."""
    against = standard(setting, target)
    line = f"target {percent(against.target)} % ({against.reason})"
    if against.centralized is not None:
        line += f", centralized {percent(against.centralized)} %"
    return line + (f", ridge {percent(against.ridge)} %" if against.ridge is not None else "")


def leaderboard_csv(rows: Sequence[Row]) -> str:
    """A line for each row; accuracies as shares, gaps in points, bytes of all clients together."""
    lines = [
        {
            "setting": row.setting,
            "strategy": row.strategy,
            "hyperparameters": row.hyperparameters,
            "seeds": " ".join(map(str, row.seeds)),
            "accuracy": _fixed(row.accuracy, 6),
            "accuracy_sd": _fixed(row.accuracy_sd, 6),
            "client_accuracy_min": _fixed(row.worst_client, 6),
            "client_accuracy_p10": _fixed(row.p10_client, 6),
            "client_heads": "personal" if row.personal else "global",
            "target": _fixed(row.target, 4),
            "rounds_to_target": _fixed(row.rounds_to_target, 2),
            "uplink_bytes_to_target": _fixed(row.uplink_to_target, 0),
            "seeds_never_at_target": row.not_reached,
            "uplink_bytes": _fixed(row.uplink_bytes, 0),
            "gap_to_centralized_points": _fixed(row.gap_centralized, 4, 100),
            "gap_to_ridge_points": _fixed(row.gap_ridge, 4, 100),
            "refused_updates": row.refused,
        }
        for row in rows
    ]
    return _csv(lines)


def timing_csv(comparison: Comparison) -> str:
    """Seconds of each run by stage, as its summary has them; they differ from run to run."""
    runs = [
        (setting.label, entry.label, run)
        for setting in comparison.settings
        for entry in setting.entries
        for run in entry.runs
    ]
    stages = dict.fromkeys(stage for *_, run in runs for stage in run.summary.seconds)
    return _csv(
        [
            {
                "setting": setting,
                "strategy": strategy,
                "seed": run.seed,
                "rounds": len(run.accuracy),
            }
            | {f"{stage}_seconds": _fixed(run.summary.seconds.get(stage), 3) for stage in stages}
            for setting, strategy, run in runs
        ]
    )


def leaderboard_markdown(comparison: Comparison, target: float | None) -> str:
    """A heading and a table for each setting."""
    columns = shown_columns(leaderboard(comparison, target), timed=False)
    parts = []
    for setting, rows in rows_by_setting(comparison, target):
        lines = [
            f"### {_markdown(setting.label)}",
            "",
            _markdown(standard_text(setting, target)),
            "",
            _line(column.title for column in columns),
            _line("---" if i == 0 else "---:" for i, _ in enumerate(columns)),
            *(_line(_markdown(column.text(row)) for column in columns) for row in rows),
        ]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def terminal_table(comparison: Comparison, target: float | None = None) -> Group:
    """The leaderboard for rich's console, readable from 80 columns on."""
    parts: list[Table | Text] = []
    by_setting = rows_by_setting(comparison, target)
    for setting, rows in by_setting:
        title = Text(setting.label, style="bold not italic")
        table = Table(
            title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1)
        )
        table.add_column("strategy", overflow="fold")
        for name in ("accuracy %", "p10", "worst", "rounds", "uplink", "gap"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*map(Text, _terminal_cells(row)))
        parts += [table, Text(standard_text(setting, target)), Text()]
    return Group(*parts, Text(_LEGEND, style="dim"))


_LEGEND = (
    "accuracy: mean ± standard deviation over seeds. p10, worst: of the clients' own test parts "
    "(* with personal heads). rounds, uplink: to reach the target. gap: points from the "
    "centralized head."
)


def _terminal_cells(row: Row) -> Iterable[str]:
    spread = "" if row.accuracy_sd is None else f" ±{percent(row.accuracy_sd):>4}"
    mark = "*" if row.personal else ""
    never = row.rounds_to_target is None
    some = f"in {row.not_reached} of {len(row.seeds)}" if row.not_reached < len(row.seeds) else "-"
    return (
        row.strategy,
        percent(row.accuracy) + spread,
        percent(row.p10_client) + mark,
        percent(row.worst_client) + mark,
        "never" if never else rounds_text(row),
        some if never else byte_text(row.uplink_to_target),
        points(row.gap_centralized),
    )


def _fixed(value: float | None, digits: int, factor: float = 1.0) -> str:
    # Adding zero makes -0.0 a plain zero.
    return "" if value is None else f"{round(value * factor, digits) + 0.0:.{digits}f}"


def _csv(lines: Sequence[Mapping[str, object]]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()


def _markdown(text: str) -> str:
    return re.sub(r"([\\|<>*_`\[\]])", r"\\\1", text)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
