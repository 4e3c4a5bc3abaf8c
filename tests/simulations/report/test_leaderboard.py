"""The leaderboard's arithmetic, against values worked out by hand, and its bytes."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from simulations.report import (
    Row,
    leaderboard,
    leaderboard_rows,
    load_runs,
    terminal_table,
    write_report,
)
from simulations.report.columns import accuracy_text

MakeRun = Callable[..., Path]


def rows(cells: Path, target: float | None = None) -> dict[str, Row]:
    return {row.strategy: row for row in leaderboard(load_runs([cells]), target)}


def test_means_and_spread_are_over_seeds(make_run: MakeRun, cells: Path) -> None:
    for seed, (last, uplink, worst) in enumerate([(900, 10, 0.2), (920, 20, 0.4), (970, 60, 0.6)]):
        make_run(
            f"a{seed}", f"seed={seed}", correct=[100, last], uplink=uplink,
            client_accuracy_min=worst, client_accuracy_p10=worst + 0.1,
            seconds={"training": 1.0 + seed}, rejected_updates=seed,
        )  # fmt: skip
    row = rows(cells)["fedavg"]
    assert row.accuracy == pytest.approx(0.93)
    # Deviations -0.03, -0.01, +0.04; their squares 9, 1, 16 (e-4); 26 / 2 = 13.
    assert row.accuracy_sd == pytest.approx(math.sqrt(13e-4))
    assert row.worst_client == pytest.approx(0.4)
    assert row.p10_client == pytest.approx(0.5)
    assert row.uplink_bytes == pytest.approx(60.0)  # (20 + 40 + 120) / 3
    assert row.gap_centralized == pytest.approx(0.01)  # the head's 0.92
    assert row.gap_ridge == pytest.approx(-0.01)
    assert row.seconds == pytest.approx(2.0)
    assert row.rejected == 3
    assert row.seeds == (0, 1, 2)


def test_one_seed_has_no_spread_but_the_chance_of_its_test_images(
    make_run: MakeRun, cells: Path
) -> None:
    make_run("a")
    row = rows(cells)["fedavg"]
    assert row.accuracy_sd is None
    assert accuracy_text(row) == "90.0 ± 1.9"  # Wilson's interval for 900 of 1,000: 88.0 to 91.7


def test_rounds_and_bytes_to_the_target_end_with_the_first_round_that_reaches_it(
    make_run: MakeRun, cells: Path
) -> None:
    make_run("a", "seed=0", correct=[700, 850, 800, 900], uplink=100)
    make_run("b", "seed=1", correct=[900, 700, 700, 700], uplink=100)
    row = rows(cells, target=0.85)["fedavg"]
    assert row.rounds_to_target == pytest.approx(1.5)  # rounds 2 and 1
    assert row.uplink_to_target == pytest.approx(150.0)  # 200 and 100 bytes
    assert row.not_reached == 0
    row = rows(cells, target=0.95)["fedavg"]
    assert (row.rounds_to_target, row.uplink_to_target, row.not_reached) == (None, None, 2)


def test_a_target_that_one_seed_misses_is_never_reached(make_run: MakeRun, cells: Path) -> None:
    make_run("a", "seed=0", correct=[900])
    make_run("b", "seed=1", correct=[800])
    row = rows(cells, target=0.9)["fedavg"]
    assert (row.rounds_to_target, row.uplink_to_target, row.not_reached) == (None, None, 1)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(terminal_table(load_runs([cells]), 0.9))
    assert re.search(r"never +in 1 of 2", console.export_text())


def test_the_target_is_two_points_below_the_centralized_head(
    make_run: MakeRun, cells: Path
) -> None:
    make_run("a", "seed=0", centralized_accuracy=0.9)
    make_run("b", "seed=1", centralized_accuracy=0.94)
    assert rows(cells)["fedavg"].target == 0.9


def test_the_best_learning_rate_of_the_centralized_head_counts(
    make_run: MakeRun, cells: Path
) -> None:
    make_run("a", "train.lr=0.1", correct=[900], centralized_accuracy=0.95)
    make_run("b", "strategy.name=krum", "train.lr=9.0", correct=[900], centralized_accuracy=0.2)
    found = rows(cells)
    assert found["krum"].gap_centralized == pytest.approx(-0.05)
    assert found["fedavg"].gap_centralized == pytest.approx(-0.05)
    assert found["krum"].target == 0.93


def test_without_a_baseline_the_target_is_98_percent_of_the_best(
    make_run: MakeRun, cells: Path
) -> None:
    none = {"centralized_accuracy": None, "ridge_accuracy": None}
    make_run("a", correct=[800], **none)
    make_run("b", "strategy.name=krum", correct=[500], **none)
    row = rows(cells)["krum"]
    assert row.target == 0.784
    assert (row.gap_centralized, row.gap_ridge) == (None, None)


def test_rows_are_sorted_by_accuracy_within_a_setting(make_run: MakeRun, cells: Path) -> None:
    make_run("a", "partition.num-clients=9", correct=[900])
    make_run("b", "partition.num-clients=9", "strategy.name=krum", correct=[950])
    make_run("c", "partition.num-clients=8", correct=[990])
    found = [(row.setting, row.strategy) for row in leaderboard(load_runs([cells]))]
    assert found == [("8 clients", "fedavg"), ("9 clients", "krum"), ("9 clients", "fedavg")]


def test_what_is_within_chance_of_the_best_is_marked(make_run: MakeRun, cells: Path) -> None:
    # sqrt(2) times half of Wilson's interval for 900 of 1,000: 0.0186
    make_run("a", correct=[900])
    make_run("b", "strategy.name=krum", correct=[874])
    make_run("c", "strategy.name=median", correct=[873])
    found = rows(cells)
    assert [found[name].near_best for name in ("fedavg", "krum", "median")] == [True, True, False]


def test_a_strategy_without_a_mistake_may_still_have_had_luck(
    make_run: MakeRun, cells: Path
) -> None:
    # Half of Wilson's interval for 1,000 of 1,000 is 0.0019.
    make_run("a", correct=[1000])
    make_run("b", "strategy.name=krum", correct=[998])
    make_run("c", "strategy.name=median", correct=[997])
    found = rows(cells)
    assert [found[name].near_best for name in ("fedavg", "krum", "median")] == [True, True, False]


def test_personal_heads_take_the_place_of_the_global_one_for_clients(
    make_run: MakeRun, cells: Path
) -> None:
    make_run(
        "a", personal_accuracy_mean=0.9, personal_accuracy_min=0.77, personal_accuracy_p10=0.88
    )
    row = rows(cells)["fedavg"]
    assert (row.worst_client, row.p10_client, row.personal) == (0.77, 0.88, True)
    text = write_report(load_runs([cells]), cells).markdown.read_text()
    assert "| 90.0\\* | 88.0\\* | 77.0\\* |" in text


def test_the_csv_depends_on_configuration_and_figures_alone(
    make_run: MakeRun, cells: Path, tmp_path: Path
) -> None:
    """Another folder, order, speed and machine: the same bytes."""
    first = {}
    for name, order, seconds in (("x", (0, 1), 1.0), ("y", (1, 0), 77.0)):
        for seed in order:
            run = make_run(
                f"{name}/{order.index(seed)}", f"seed={seed}", "strategy.args.server-lr=0.5",
                correct=[333, 667], seconds={"training": seconds},
                versions={"python": name}, fingerprint=name * 64,
            )  # fmt: skip
            assert run.is_dir()
        files = write_report(load_runs([cells / name]), tmp_path / name)
        first[name] = (files.csv.read_bytes(), files.markdown.read_bytes())
    assert first["x"] == first["y"]


def test_a_backdoors_success_stands_beside_the_accuracy_and_nowhere_without_one(
    make_run: MakeRun, cells: Path, tmp_path: Path
) -> None:
    door = ("attack.kind=backdoor",)
    for seed, share in enumerate((0.2, 0.5)):
        make_run(f"a{seed}", f"seed={seed}", *door, correct=[900], backdoor_success=share)
    make_run("k", "strategy.name=krum", *door, correct=[700], backdoor_success=0.03125)
    files = write_report(load_runs([cells]), tmp_path / "attacked")
    lines = {line["strategy"]: line for line in csv.DictReader(io.StringIO(files.csv.read_text()))}
    assert lines["fedavg"]["backdoor-success"] == "0.350000"
    assert lines["krum"]["backdoor-success"] == "0.031250"
    assert "| Backdoor\u00a0% |" in files.markdown.read_text()
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(terminal_table(load_runs([cells])))
    assert re.search(r"fedavg .* 35\.0 ", shown := console.export_text())
    assert "backdoor: % of other classes' test images" in shown.replace("\n", " ")

    make_run("calm/a", correct=[900])
    calm = write_report(load_runs([cells / "calm"]), tmp_path / "calm")
    assert "ackdoor" not in calm.csv.read_text() + calm.markdown.read_text()


def test_the_csv_says_what_the_rows_say(make_run: MakeRun, cells: Path, tmp_path: Path) -> None:
    make_run("a", "strategy.name=fedprox", "strategy.args.mu=0.1", correct=[100, 905], uplink=7)
    make_run("b", correct=[100, 200], client_accuracy_min=None)
    files = write_report(load_runs([cells]), tmp_path, target=0.9)
    text = files.csv.read_text()
    prox, avg = csv.DictReader(io.StringIO(text))
    assert prox == {
        "setting": "iid",
        "strategy": "fedprox",
        "hyperparameters": "lr=auto mu=0.1",
        "seeds": "0",
        "accuracy": "0.905000",
        "accuracy-sd": "",
        "balanced-accuracy": "0.920436",
        "test-examples": "1000",
        "client-accuracy-mean": "0.800000",
        "client-accuracy-min": "0.500000",
        "client-accuracy-p10": "0.700000",
        "client-heads": "global",
        "target": "0.9000",
        "rounds-to-target": "2.00",
        "uplink-bytes-to-target": "14",
        "seeds-never-at-target": "0",
        "uplink-bytes": "14",
        "gap-to-centralized-points": "-1.5000",
        "gap-to-ridge-points": "-3.5000",
        "rejected-updates": "0",
    }
    assert (avg["rounds-to-target"], avg["seeds-never-at-target"]) == ("", "1")
    assert avg["client-accuracy-min"] == ""
    assert "\r" not in text
    timing = list(csv.DictReader(io.StringIO(files.timing.read_text())))
    assert [(t["strategy"], t["seed"], t["training-seconds"]) for t in timing] == [
        ("fedprox", "0", "1.500"),
        ("fedavg", "0", "1.500"),
    ]


def test_markdown_has_a_table_for_each_setting_and_no_open_markup(
    make_run: MakeRun, cells: Path, tmp_path: Path
) -> None:
    make_run("a", "data.source=folder:/x/a|b<i>_c_", rejected_updates=3)
    make_run("b", "data.source=digits")
    text = write_report(load_runs([cells]), tmp_path).markdown.read_text()
    assert text.count("### ") == 3  # both together first
    assert r"### folder:a\|b\<i\>\_c\_" in text
    assert "| Rejected |" in text  # said where there is one
    assert text.count("of 1,000 test images: differences below 2.6 points may be chance") == 2
    lines = [line for line in text.partition("### folder")[2].splitlines() if line[:1] == "|"]
    assert len({line.replace(r"\|", "").count("|") for line in lines}) == 1


def test_the_terminal_table_fits_80_columns_and_shows_names_as_they_are(
    make_run: MakeRun, cells: Path
) -> None:
    for seed in (0, 1, 2):
        make_run(f"a{seed}", f"seed={seed}", "strategy.init=fed3r", "strategy.precondition=gram",
                 correct=[900 + seed], uplink=999_400_000)  # fmt: skip
        make_run(f"b{seed}", f"seed={seed}", "strategy.name=mine:[bold]", correct=[0, 0, 1000])
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(terminal_table(load_runs([cells]), 0.9))
    text = console.export_text()
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "…" not in text
    assert "[bold]" in text
    assert "100.0 ± 0.0" in text


def test_strategies_metrics_stand_one_below_the_other_with_names_on_one_line(
    make_run: MakeRun, cells: Path
) -> None:
    names = [f"a-metric-with-a-name-{i}" for i in range(9)]
    for seed in (0, 1):
        own = {name: float(seed + i) for i, name in enumerate(names)}
        make_run(f"a{seed}", f"seed={seed}", counts={"strategy": own})
        make_run(f"b{seed}", f"seed={seed}", "strategy.name=lda")
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(terminal_table(load_runs([cells])))
    shown = console.export_text().partition("Own metrics")[2]
    for i, name in enumerate(names):
        (line,) = [line for line in shown.splitlines() if name in line]
        assert line.split()[-3:] == [f"{i + 0.5:g}", "±", "0.71"]
        assert ("fedavg" in line) == (i == 0)
    assert "lda" not in shown


def test_rows_for_python_have_the_names_of_the_csv(
    make_run: MakeRun, cells: Path, tmp_path: Path
) -> None:
    make_run("a", correct=[900])
    comparison = load_runs([cells])
    (row,) = leaderboard_rows(leaderboard(comparison))
    files = write_report(comparison, tmp_path)
    header = files.csv.read_text().splitlines()[0].split(",")
    assert list(row) == [*header, "near-best", "training-seconds"]
    assert row["gap-to-centralized-points"] == pytest.approx(-2.0)
    assert row["seeds"] == (0,)


def test_seconds_of_stages_have_names_in_one_style(
    make_run: MakeRun, cells: Path, tmp_path: Path
) -> None:
    make_run("a", seconds={"rounds_total": 2.0, "training": 1.5})
    header = write_report(load_runs([cells]), tmp_path).timing.read_text().splitlines()[0]
    assert header == "setting,strategy,seed,rounds,rounds-total-seconds,training-seconds"


def test_the_legend_explains_what_is_there_alone(make_run: MakeRun, cells: Path) -> None:
    none = {f"client_accuracy_{figure}": None for figure in ("min", "p10")}
    make_run("a", "seed=0", **none, centralized_accuracy=None)
    make_run("b", "seed=1", **none, centralized_accuracy=None)
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(terminal_table(load_runs([cells])))
    legend = console.export_text().strip().splitlines()[-1]
    for word in ("gap:", "p10:", "worst:", "*", "of one seed"):
        assert word not in legend
    assert "s: seconds of training." in legend


def test_the_terminal_says_each_setting_once(make_run: MakeRun, cells: Path) -> None:
    make_run("a", "train.lr=0.5", "train.momentum=0.25")
    make_run("b", "train.lr=0.125", "train.momentum=0.25")
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(terminal_table(load_runs([cells])))
    text = console.export_text()
    assert [text.count(word) for word in ("lr=0.5", "lr=0.125", "momentum=0.25")] == [1, 1, 2]


def test_many_rows_are_cut_in_the_terminal_and_a_matrix_holds_them_all(
    make_run: MakeRun, cells: Path
) -> None:
    schemes = [f"dirichlet:{alpha}" for alpha in (0.1, 0.2, 0.3, 0.5, 1)]
    for scheme in schemes:
        for i in range(9):
            for seed in (0, 1):
                make_run(f"{scheme}-{i}-{seed}", "partition.scheme=dirichlet", f"seed={seed}",
                         f"partition.alpha={scheme[10:]}", f"strategy.name=m:a_long_strategy_{i}",
                         correct=[900 - i])  # fmt: skip
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(terminal_table(load_runs([cells])))
    text = console.export_text()
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert text.count("... and 1 more") == len(schemes)
    matrix = text.partition("Accuracy in all settings")[2]
    for i in range(9):
        row = next(line for line in matrix.splitlines() if f"a_long_strategy_{i}" in line)
        assert row.count(f"{90 - i / 10:.1f}") == len(schemes)


def test_too_few_tests_of_too_few_clients_give_no_worst_client(
    make_run: MakeRun, cells: Path, tmp_path: Path
) -> None:
    make_run("a", client_accuracy_min=None, client_accuracy_p10=None)
    row = rows(cells)["fedavg"]
    assert (row.worst_client, row.p10_client) == (None, None)
    text = write_report(load_runs([cells]), tmp_path).markdown.read_text()
    assert ("Client mean" in text, "Client p10" in text) == (True, False)
