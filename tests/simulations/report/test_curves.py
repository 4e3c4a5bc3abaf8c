"""curves.csv: every round of every run, and the order of the tables beside it."""

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from simulations.report import curve_rows, leaderboard, load_runs, write_report
from simulations.report.curves import curves_csv, write_curves
from simulations.run import run_in_process

MakeRun = Callable[..., Path]
ROOT = Path(__file__).parents[3]


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_row_is_one_round_of_one_run(make_run: MakeRun, cells: Path, tmp_path: Path) -> None:
    make_run("a", "strategy.name=fedprox", "strategy.args.mu=0.1", correct=[100, 905], uplink=7)
    make_run("b", "seed=3", correct=[200], uplink=9)
    comparison = load_runs([cells])
    files = write_report(comparison, tmp_path)
    rows = read(files.curves.read_text())
    assert [(r["run"], r["strategy"], r["seed"], r["round"]) for r in rows] == [
        ("a", "fedprox", "0", "1"), ("a", "fedprox", "0", "2"), ("b", "fedavg", "3", "1"),
    ]  # fmt: skip
    assert rows[1] == {
        "run": "a", "setting": "iid", "strategy": "fedprox", "hyperparameters": "lr=auto mu=0.1",
        "partition": "iid", "seed": "0", "round": "2", "accuracy": "0.905", "uplink-bytes": "7",
        "loss": "1.0",
    }  # fmt: skip
    assert [row["accuracy"] for row in curve_rows(comparison)] == [0.1, 0.905, 0.2]


def test_runs_of_the_same_name_are_told_apart_by_their_folders(
    make_run: MakeRun, cells: Path
) -> None:
    make_run("one/run", correct=[100])
    make_run("two/run", "seed=1", correct=[100])
    make_run("three", "seed=2", correct=[100])
    names = {str(row["run"]) for row in curve_rows(load_runs([cells]))}
    assert names == {"one/run", "two/run", "cells/three"}


def test_a_finished_run_has_its_curves_and_a_report_writes_the_same_bytes(
    quick: Callable[..., Path], tmp_path: Path
) -> None:
    runs = [quick("train.rounds=2", "strategy.name=fednova", name=f"{i}/run") for i in "ab"]
    for run in runs:
        run_in_process(run)
    made = [(run / "curves.csv").read_bytes() for run in runs]
    assert made[0] == made[1]
    assert write_curves(runs[0]).read_bytes() == made[0]
    assert write_report(load_runs(runs[:1]), tmp_path).curves.read_bytes() == made[0]


def test_every_column_is_in_kebab_case_without_a_clock_and_documented(
    quick: Callable[..., Path],
) -> None:
    run = quick("train.rounds=1", "train.clients-per-round=0")
    run_in_process(run)
    (row,) = read((run / "curves.csv").read_text())
    named = ["run", "setting", "strategy", "hyperparameters", "partition", "seed", "round"]
    assert [*row][: len(named)] == named
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", key) for key in row)
    assert not {"seconds", "train-seconds"} & {*row}
    page = (ROOT / "docs" / "research.md").read_text()
    table = page.partition("| column | what it is |")[2].partition("\n\n")[0]
    documented = set(re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE))
    assert {*row} == documented


def test_a_strategys_own_metric_is_a_column_of_its_own(make_run: MakeRun, cells: Path) -> None:
    from server.record.runfolder import MetricsLog

    path = make_run("a", correct=[100])
    with MetricsLog(path, 0, durable=False) as log:
        values = {"accuracy": 0.1, "uplink-bytes": 1, "accepted": True}
        log.write(1, {**values, "strategy": {"noise-norm": 0.5}})
    make_run("b", "seed=1", correct=[100])
    first, second = read(curves_csv(load_runs([cells])))
    assert (first["strategy/noise-norm"], second["strategy/noise-norm"]) == ("0.5", "")
    assert (first["accepted"], second["accepted"]) == ("true", "")
    assert list(first)[-1] == "strategy/noise-norm"


def test_tables_keep_the_order_that_was_asked_for(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [
        make_run(f"{scheme}-{name}", f"partition.scheme={scheme}", f"strategy.name={name}",
                 correct=[right])
        for scheme in ("iid", "dirichlet")
        for name, right in (("krum", 500), ("fedavg", 900), ("median", 700))
    ]  # fmt: skip
    asked = load_runs(runs, as_asked=True)
    names = ["krum", "fedavg", "median"]
    found = [(row.setting, row.strategy) for row in leaderboard(asked)]
    assert found == [("iid", n) for n in names] + [("dirichlet:0.3", n) for n in names]
    assert asked.strategies == names
    files = write_report(asked, tmp_path)
    assert [row["strategy"] for row in read(files.csv.read_text())] == names * 2
    assert "Rows: in the order asked for." in files.markdown.read_text()
    best = load_runs(runs)
    assert [row.strategy for row in leaderboard(best)][:3] == ["fedavg", "median", "krum"]
    assert best.strategies == ["fedavg", "median", "krum"]


@pytest.mark.parametrize("many", [False, True])
def test_many_rows_are_cut_to_the_best_in_the_order_asked(
    make_run: MakeRun, many: bool, tmp_path: Path
) -> None:
    from rich.console import Console

    from simulations.report import terminal_table

    schemes = range(3, 8) if many else range(3, 4)
    runs = [
        make_run(f"{n}-{i}", f"partition.num-clients={n}", f"strategy.args.mu={i}",
                 "strategy.name=fedprox", correct=[500 + i])
        for n in schemes
        for i in range(1, 11)
    ]  # fmt: skip
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(terminal_table(load_runs(runs, as_asked=True)))
    first = console.export_text().partition("target")[0]
    shown = [int(value) for value in re.findall(r"^ ?fedprox mu=(\d+)", first, re.MULTILINE)]
    assert shown == ([*range(3, 11)] if many else [*range(1, 11)])
