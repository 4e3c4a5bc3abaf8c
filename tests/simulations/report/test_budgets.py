"""Accuracy against privacy: rows with budgets, their columns, and their figure's data."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from simulations.report import (
    Comparison,
    curve_rows,
    leaderboard,
    load_runs,
    terminal_table,
    write_report,
)
from simulations.report.budget_figure import budget_data, budget_lines, budgets
from simulations.report.figures import line_styles
from simulations.report.page import page_html

MakeRun = Callable[..., Path]

# strategy, epsilon, right answers of 1,000
_ROWS = (
    ("fedavg", "1", 847), ("fedavg", "4", 913), ("fedavg", "inf", 940),
    ("fed3r", "1", 816), ("fed3r", "4", 854), ("fed3r", "inf", 955),
    ("krum", "inf", 930),
)  # fmt: skip
_BY_RULE = (
    "train.rounds=2", "train.batch-size=0", "backbone.projection=auto", "partition.test-fraction=0"
)  # fmt: skip
_AS_WRITTEN = ("train.rounds=2", "train.clients-per-round=10", "partition.test-fraction=0.2")


@pytest.fixture
def budgeted(make_run: MakeRun) -> Comparison:
    """Two seeds of each row; the rule has other keys of the setting than the experiment."""
    paths = [
        make_run(
            f"{name}-{epsilon}-{seed}", f"seed={seed}", f"strategy.name={name}",
            f"privacy.epsilon={epsilon}", *(_AS_WRITTEN if epsilon == "inf" else _BY_RULE),
            *(["privacy.mechanism=one-shot"] if (name, epsilon) == ("fed3r", "1") else []),
            correct=[500, right - 1 + 2 * seed],
            fingerprint={"1": "d", "4": "e", "inf": "f"}[epsilon] * 64,
        )
        for name, epsilon, right in _ROWS
        for seed in (0, 1)
    ]  # fmt: skip
    return load_runs(paths, as_asked=True)


def test_budgets_are_rows_of_one_setting(budgeted: Comparison) -> None:
    rows = leaderboard(budgeted)
    assert [row.label for row in rows] == [f"{name} · epsilon {e}" for name, e, _ in _ROWS]
    assert {row.setting for row in rows} == {"iid"}
    assert [(row.strategy, row.epsilon) for row in rows] == [row[:2] for row in _ROWS]
    # Other directions by rule are no reason to warn.
    assert budgeted.notes == ()
    assert (budgeted.budgeted, budgeted.packed) == (True, False)


def test_what_is_by_rule_needs_no_word_in_each_row(budgeted: Comparison) -> None:
    told = {row.label: row.hyperparameters for row in leaderboard(budgeted)}
    assert told["fedavg · epsilon 4"] == "lr=auto"
    assert told["fedavg · epsilon inf"] == "lr=auto clients-per-round=10"
    assert told["fed3r · epsilon 1"] == ""


def test_what_a_private_row_has_beside_the_rule_is_told(make_run: MakeRun, cells: Path) -> None:
    make_run("a", "privacy.epsilon=4", "privacy.delta=1e-6", "train.local-epochs=2")
    make_run("b", "train.local-epochs=3")
    told = {row.label: row.hyperparameters for row in leaderboard(load_runs([cells]))}
    assert told["fedavg · epsilon 4"].split() == ["lr=auto", "local-epochs=2", "delta=1e-06"]
    assert told["fedavg · epsilon inf"].split() == ["lr=auto", "local-epochs=3"]


def test_runs_of_one_budget_differ_in_their_settings_as_ever(
    make_run: MakeRun, cells: Path
) -> None:
    make_run("a", "privacy.epsilon=4", "partition.test-fraction=0")
    make_run("b", "privacy.epsilon=4", "partition.test-fraction=0.2")
    comparison = load_runs([cells])
    assert len(comparison.settings) == 2
    assert comparison.axes == ()


def test_a_projection_is_named_beside_a_budget_only_where_it_is_compared(
    make_run: MakeRun, cells: Path
) -> None:
    for epsilon in ("4", "inf"):
        for projection in ("64", "off"):
            make_run(
                f"{epsilon}-{projection}",
                f"privacy.epsilon={epsilon}",
                f"backbone.projection={projection}",
            )
    comparison = load_runs([cells])
    assert {entry.label for entry in comparison.settings[0].entries} == {
        "fedavg · 64 · epsilon 4", "fedavg · off · epsilon 4",
        "fedavg · 64 · epsilon inf", "fedavg · off · epsilon inf",
    }  # fmt: skip
    (setting,) = comparison.settings
    assert {line.label for line in budget_lines(comparison, setting)} == {
        "fedavg · 64", "fedavg · off"
    }  # fmt: skip
    assert [name for name, *_ in page_parts(comparison)][:2] == ["privacy", "bytes"]


def page_parts(comparison: Comparison) -> list[tuple[str, int]]:
    """The page's sections in their order."""
    text = page_html(comparison, None)
    names = ("privacy", "bytes", "leaderboard", "curves")
    found = [(name, text.find(f'<section id="{name}">')) for name in names]
    return sorted((one for one in found if one[1] >= 0), key=lambda one: one[1])


def test_tables_for_programs_have_a_column(budgeted: Comparison, tmp_path: Path) -> None:
    files = write_report(budgeted, tmp_path)
    for file in (files.csv, files.timing, files.curves):
        rows = list(csv.DictReader(io.StringIO(file.read_text())))
        found = dict.fromkeys((row["strategy"], row["epsilon"]) for row in rows)
        assert list(found) == [row[:2] for row in _ROWS]
        assert not {"codec", "projection", "on-pareto-front"} & {*rows[0]}
    assert curve_rows(budgeted)[0]["epsilon"] == "1"


def test_without_budgets_there_is_neither_column_nor_figure(
    make_run: MakeRun, cells: Path, tmp_path: Path
) -> None:
    make_run("a")
    make_run("b", "strategy.name=krum")
    files = write_report(load_runs([cells]), tmp_path)
    for file in (files.csv, files.timing, files.curves):
        assert "epsilon" not in file.read_text().splitlines()[0].split(",")
    assert 'id="plot-privacy"' not in files.page.read_text()


def test_the_terminal_names_budgets_on_80_columns(budgeted: Comparison) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(terminal_table(budgeted))
    text = console.export_text()
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    for name, epsilon, right in _ROWS:
        (line,) = [one for one in text.splitlines() if f"{name} · epsilon {epsilon} " in one]
        assert f"{right / 10:.1f}" in line


def test_a_line_has_its_budgets_ascending_and_what_it_has_without(budgeted: Comparison) -> None:
    (setting,) = budgeted.settings
    assert budgets(setting) == [1.0, 4.0, math.inf]
    fedavg, fed3r, krum = budget_data(budgeted, setting)
    assert [(p["epsilon"], round(p["accuracy"], 3)) for p in fedavg["points"]] == [
        (1.0, 0.847), (4.0, 0.913)
    ]  # fmt: skip
    assert fedavg["without"]["accuracy"] == 0.94
    assert fed3r["points"][0]["low"] < 0.815 < 0.817 < fed3r["points"][0]["high"]
    assert (krum["points"], krum["without"]["accuracy"]) == ([], 0.93)
    # A line has the colour that the strategy has in all other plots.
    styles = line_styles(budgeted)
    assert [line["colour"] for line in (fedavg, fed3r, krum)] == [
        styles[f"{name} · epsilon inf"].colour for name in ("fedavg", "fed3r", "krum")
    ]


def test_the_page_begins_with_accuracy_against_privacy(budgeted: Comparison) -> None:
    assert [name for name, _ in page_parts(budgeted)] == ["privacy", "leaderboard", "curves"]
    text = page_html(budgeted, None)
    assert "3 strategies with 3 privacy budgets on mnist5k" in text
    section = text[text.index('<section id="privacy">') : text.index('<section id="leaderboard">')]
    cells = [part.partition("</td>")[0] for part in section.split("<td>")[1:]]
    assert cells == [
        "84.7 ± 0.1", "91.3 ± 0.1", "94.0 ± 0.1", "81.6 ± 0.1", "85.4 ± 0.1", "95.5 ± 0.1",
        "-", "-", "93.0 ± 0.1",
    ]  # fmt: skip
