"""The leaderboard for people: Markdown for a README, a table for the terminal.

No seconds, paths or dates in the first: a comparison that was killed and went on gives the same
bytes as one that ran through.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from common.noise import COUNTED_EXAMPLES
from common.tables import Fitted
from simulations.report.columns import (
    Column,
    accuracy_text,
    metric_names,
    metric_text,
    percent,
    rounds_text,
    shown_columns,
)
from simulations.report.comparison import Comparison, Setting
from simulations.report.leaderboard import Row, leaderboard, sampling_margin, standard

__all__ = [
    "leaderboard_markdown",
    "overview",
    "rows_by_setting",
    "standard_text",
    "terminal_table",
]


RowsBySetting = Sequence[tuple[Setting, Sequence[Row]]]


def rows_by_setting(comparison: Comparison, target: float | None) -> RowsBySetting:
    """The leaderboard, cut into one for each setting."""
    rows = leaderboard(comparison, target)
    return [(s, [row for row in rows if row.setting == s.label]) for s in comparison.settings]


def overview(
    comparison: Comparison, by_setting: RowsBySetting
) -> list[tuple[str, list[Row | None]]]:
    """Each strategy, as asked or the best on average first, with its row in every setting."""
    rows = [{row.label: row for row in rows} for _, rows in by_setting]
    return [(label, [one.get(label) for one in rows]) for label in comparison.strategies]


def standard_text(setting: Setting, target: float | None) -> str:
    """One line: the target, where it comes from, and the heads of undivided data."""
    against = standard(setting, target)
    line = f"target {percent(against.target)} % ({against.reason})"
    if against.centralized is not None:
        line += f", centralized {percent(against.centralized)} %"
    others = (("ridge", against.ridge), ("logistic", against.logistic))
    return line + "".join(f", {name} {percent(v)} %" for name, v in others if v is not None)


def _about(setting: Setting, target: float | None) -> str:
    """The same, and what is chance."""
    tests = min(run.test_examples for run in setting.runs)
    chance = percent(sampling_margin(setting))
    noise = f"of {tests:,} test images: differences below {chance} points may be chance"
    return f"{standard_text(setting, target)}; {noise}"


def leaderboard_markdown(comparison: Comparison, target: float | None) -> str:
    """A heading and a table for each setting, after one of all settings if there are several."""
    columns = shown_columns(leaderboard(comparison, target), timed=False)
    by_setting = rows_by_setting(comparison, target)
    blocks = [[f"Rows: {_order(comparison)}."]]
    if len(by_setting) > 1:
        lines = _markdown_table(
            ["Strategy", *(setting.label for setting, _ in by_setting)],
            [
                [label, *(accuracy_text(row) if row else "-" for row in cells)]
                for label, cells in overview(comparison, by_setting)
            ],
        )
        blocks.append(["### Accuracy in all settings, %", "", *lines])
    for setting, rows in by_setting:
        lines = _markdown_table(
            [column.title for column in columns],
            [[column.text(row) for column in columns] for row in rows],
            words=[i for i, column in enumerate(columns) if column.words],
        )
        about = _about(setting, target)
        blocks.append([f"### {_markdown(setting.label)}", "", _markdown(about), "", *lines])
    return "\n".join("\n".join(block) + "\n" for block in blocks)


def _order(comparison: Comparison) -> str:
    return "in the order asked for" if comparison.asked else "the best accuracy first"


def _markdown_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[int] = (0,)
) -> list[str]:
    """Lines of a table whose columns of words are aligned left."""
    rule = ["---" if i in words else "---:" for i in range(len(header))]
    cells = [map(_markdown, header), rule, *(map(_markdown, row) for row in rows)]
    return [f"| {' | '.join(line)} |" for line in cells]


def terminal_table(comparison: Comparison, target: float | None = None) -> Group:
    """The leaderboard for rich's console, readable from 80 columns on."""
    blocks: list[Fitted | Table | Text] = []
    by_setting = rows_by_setting(comparison, target)
    every = [row for _, rows in by_setting for row in rows]
    columns = [column for column in shown_columns(every, timed=True) if column.short]
    many = len(every) > _MANY_ROWS
    for setting, rows in by_setting:
        best = sorted(rows, key=lambda row: -row.accuracy)[:_BEST_ROWS] if many else rows
        shown = [row for row in rows if row in best]
        more = (
            f" ... and {len(rows) - len(shown)} more in leaderboard.md\n"
            if len(shown) < len(rows)
            else ""
        )
        blocks += [
            Fitted(_setting_table(setting, shown, columns), _EXPENDABLE),
            Text(f"{more}{_about(setting, target)}\n"),
            *map(Fitted, _metric_tables(shown)),
        ]
    if len(by_setting) > 1:
        blocks.append(_overview_table(comparison, by_setting))
    legend = f"rows: {_order(comparison)}. {_legend(columns, every)}"
    return Group(*blocks, Text(legend, style="dim"))


_MANY_ROWS, _BEST_ROWS = 40, 8
_EXPENDABLE = ("s", "worst", "p10", "uplink", "rounds", "gap")
"""Columns that a narrow terminal has no room for; the page has them all."""
_WIDEST_NAME = 32
"""Characters of a strategy with its codec and projection that stay on one line."""
_WITH_SPREAD = 4
"""Settings whose standard deviations fit beside each other on 80 columns."""
_LEGEND = {
    "backdoor": "% of other classes' test images that the trigger turns into the target",
    "gap": "points to the centralized head",
    "p10": f"a tenth of the clients with {COUNTED_EXAMPLES} test images or more has at most it",
    "worst": "the lowest of these clients",
    "rounds": "to the target",
    "uplink": "to the target",
    "a round": "what a client sends in a round",
    "front": "no other row has more accuracy for fewer bytes of the whole run",
    "s": "seconds of training",
}
"""What the columns mean, by their short titles."""


def _legend(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """Words for the columns that are there, and for the marks in them."""
    spread = (
        "± standard deviation over seeds"
        if all(row.accuracy_sd is not None for row in rows)
        else "± standard deviation over seeds, of one seed the 95 % chance of its test images"
    )
    words = [f"accuracy: mean {spread}", "bold: within chance of the best"]
    words += [f"{c.short}: {_LEGEND[c.short]}" for c in columns if c.short in _LEGEND]
    clients = {"p10", "worst"} & {column.short for column in columns}
    if clients and any(row.personal for row in rows):
        words.append("*: with personal heads")
    return "; ".join(words) + "."


def _table(title: str) -> Table:
    return Table(
        title=Text(title, style="bold not italic"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )


def _setting_table(setting: Setting, rows: Sequence[Row], columns: Sequence[Column]) -> Table:
    """Each strategy with its settings behind its name."""
    table = _table(setting.label)
    # A name of three parts on one line is worth a column that the page has, too.
    table.add_column("strategy", overflow="fold", min_width=_name_width(rows))
    for column in columns:
        table.add_column(column.short, justify="right", no_wrap=column.text is not rounds_text)
    for row in rows:
        name = Text(row.label, style="bold" if row.near_best else "")
        name.append(f" {_rest(row)}".rstrip(), style="not bold dim")
        table.add_row(name, *(Text(column.text(row)) for column in columns))
    return table


def _name_width(rows: Sequence[Row]) -> int:
    """How wide names with a codec and a projection need to be; 0 where there are none."""
    widest = max((len(row.label) for row in rows if row.label != row.strategy), default=0)
    return min(widest, _WIDEST_NAME)


def _rest(row: Row) -> str:
    """Those of its hyperparameters that its name does not have already."""
    named = row.label.split()
    return " ".join(word for word in row.hyperparameters.split() if word not in named)


def _metric_tables(rows: Sequence[Row]) -> list[Table]:
    """What the strategies say of themselves, where any does: a table beside the wide one."""
    names = metric_names(rows)
    if not names:
        return []
    table = _table("Own metrics, last values")
    table.add_column("strategy", overflow="fold", min_width=_name_width(rows))
    table.add_column("metric", overflow="fold")
    table.add_column("value", justify="right", no_wrap=True)
    for row in rows:
        label = f"{row.label} {_rest(row)}".rstrip()
        for name in names:
            if name in row.metrics:
                table.add_row(Text(label), Text(name), Text(metric_text(row, name)))
                label = ""  # it is said once
    return [table]


def _overview_table(comparison: Comparison, by_setting: RowsBySetting) -> Table:
    table = _table("Accuracy in all settings, %")
    table.add_column("strategy", no_wrap=True)
    for setting, _ in by_setting:
        # Many settings side by side are narrow: "dirichlet:0.1" breaks behind its colon.
        label = (
            setting.label.replace(":", ":\n") if len(by_setting) > _WITH_SPREAD else setting.label
        )
        table.add_column(Text(label), justify="right", overflow="fold")
    for label, cells in overview(comparison, by_setting):
        table.add_row(
            Text(label), *(_overview_cell(row, len(cells) <= _WITH_SPREAD) for row in cells)
        )
    return table


def _overview_cell(row: Row | None, spread: bool) -> Text:
    if row is None:
        return Text("-")
    content = accuracy_text(row) if spread else percent(row.accuracy)
    return Text(content, style="bold" if row.near_best else "")


def _markdown(text: str) -> str:
    return re.sub(r"([\\|<>*_`\[\]])", r"\\\1", text)
