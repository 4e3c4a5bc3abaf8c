"""Accuracy against bytes: the front, rows with codecs and projections, and their figure."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from simulations.report import (
    Comparison,
    Row,
    curve_rows,
    leaderboard,
    leaderboard_rows,
    load_runs,
    terminal_table,
    write_report,
)
from simulations.report.bytes_figure import bytes_data, kept, traffics
from simulations.report.figures import line_styles
from simulations.report.page import page_html
from simulations.report.pareto import on_front

MakeRun = Callable[..., Path]

# strategy, codec, projection, right answers of 1,000, bytes of a round
_ROWS = (
    ("fedavg", "none", "off", 966, 300_000),
    ("fedavg", "drive", "off", 960, 10_000),
    ("fedavg", "drive", "255", 961, 3_600),
    ("fed3r", "none", "off", 984, 9_000_000),
    ("fed3r", "gram-int8", "255", 976, 360_000),
    ("krum", "none", "off", 930, 300_000),
)


@pytest.fixture
def packed(make_run: MakeRun, cells: Path) -> Comparison:
    """Six rows of two seeds each, in one setting, in the order in which they were asked for."""
    paths = [
        make_run(
            f"{name}-{codec}-{projection}-{seed}", f"seed={seed}", f"strategy.name={name}",
            f"codec.up={codec}", f"backbone.projection={projection}", uplink=uplink,
            correct=[500, right - 1 + 2 * seed], population=50, downlink_bytes=8_000_000,
            fingerprint=("f" if projection == "off" else "e") * 64,
        )
        for name, codec, projection, right, uplink in _ROWS
        for seed in (0, 1)
    ]  # fmt: skip
    return load_runs(paths, as_asked=True)


points = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 6).map(lambda n: n / 7)), min_size=1, max_size=12
)


@given(points)
def test_nobody_beats_the_front_and_one_of_it_beats_each_other(
    drawn: list[tuple[int, float]],
) -> None:
    def beats(a: tuple[int, float], b: tuple[int, float]) -> bool:
        return a[0] <= b[0] and a[1] >= b[1] and a != b

    marks = on_front([cost for cost, _ in drawn], [value for _, value in drawn])
    front = [point for point, mark in zip(drawn, marks, strict=True) if mark]
    assert front
    for point, mark in zip(drawn, marks, strict=True):
        assert mark != any(beats(one, point) for one in front)
        assert mark != any(beats(one, point) for one in drawn)


@given(points, st.randoms(use_true_random=False))
def test_the_front_does_not_depend_on_the_order(
    drawn: list[tuple[int, float]], order: Random
) -> None:
    def front(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
        marks = on_front([cost for cost, _ in points], [value for _, value in points])
        return sorted(point for point, mark in zip(points, marks, strict=True) if mark)

    assert front(order.sample(drawn, len(drawn))) == front(drawn)


def test_ties_and_a_single_row() -> None:
    assert on_front([5], [0.5]) == [True]
    assert on_front([5, 5], [0.5, 0.5]) == [True, True]  # nobody beats the other
    assert on_front([5, 5], [0.5, 0.6]) == [False, True]
    assert on_front([4, 5], [0.5, 0.5]) == [True, False]


def test_a_combination_is_a_row_of_one_setting(packed: Comparison) -> None:
    rows = leaderboard(packed)
    assert [row.label for row in rows] == [
        "fedavg · none · off", "fedavg · drive · off", "fedavg · drive · 255",
        "fed3r · none · off", "fed3r · gram-int8 · 255", "krum · none · off",
    ]  # fmt: skip
    assert [(row.strategy, row.codec, row.projection) for row in rows] == [row[:3] for row in _ROWS]
    assert {row.setting for row in rows} == {"iid"}
    assert [row.on_front for row in rows] == [True, False, True, True, True, False]
    # Other features are what a projection is for: no reason to warn.
    assert packed.notes == ()


def test_two_backbones_of_one_projection_are_told(make_run: MakeRun, cells: Path) -> None:
    for name, letter in (("a", "f"), ("b", "e")):
        make_run(name, f"codec.up={'none' if name == 'a' else 'drive'}", fingerprint=letter * 64)
    (note,) = load_runs([cells]).notes
    assert "different backbones" in note


def test_only_what_is_compared_stands_in_a_name(make_run: MakeRun, cells: Path) -> None:
    make_run("a", "codec.up=none", "backbone.projection=8")
    make_run("b", "codec.up=drive", "backbone.projection=8")
    (setting,) = load_runs([cells]).settings
    assert {entry.label for entry in setting.entries} == {"fedavg · none", "fedavg · drive"}
    assert {entry.hyperparameters for entry in setting.entries} == {"lr=auto"}


def test_a_codec_that_all_have_is_nothing_to_compare(make_run: MakeRun, cells: Path) -> None:
    make_run("a", "codec.up=drive", "backbone.projection=8")
    make_run("b", "codec.up=drive", "backbone.projection=8", "strategy.name=fedprox")
    comparison = load_runs([cells])
    assert not comparison.packed
    assert comparison.strategies == ["fedavg", "fedprox"]


def test_no_codec_and_none_are_the_same(make_run: MakeRun, cells: Path) -> None:
    make_run("a", "codec.up=none")
    make_run("b", "seed=1")
    make_run("c", "strategy.name=flwr.serverapp.strategy:FedAdam")  # whose own nobody chose
    comparison = load_runs([cells])
    assert not comparison.packed
    assert [entry.seeds for entry in comparison.settings[0].entries if entry.label == "fedavg"] == [
        (0, 1)
    ]


def test_settings_that_differ_in_more_than_the_codec_keep_it_in_their_names(
    make_run: MakeRun, cells: Path
) -> None:
    make_run("a", "codec.up=drive", "train.lr=0.1")
    make_run("b", "codec.up=drive", "train.lr=0.5")
    make_run("c", "codec.up=none", "train.lr=0.1")
    labels = {entry.label for entry in load_runs([cells]).settings[0].entries}
    assert labels == {"fedavg · drive lr=0.1", "fedavg · drive lr=0.5", "fedavg · none"}
    names = {row.strategy for row in leaderboard(load_runs([cells]))}
    assert names == {"fedavg lr=0.1", "fedavg lr=0.5", "fedavg"}


def test_tables_for_programs_have_codec_and_projection_in_columns(
    packed: Comparison, tmp_path: Path
) -> None:
    files = write_report(packed, tmp_path)
    for file in (files.csv, files.timing, files.curves):
        rows = list(csv.DictReader(io.StringIO(file.read_text())))
        assert {row["strategy"] for row in rows} == {"fedavg", "fed3r", "krum"}
        found = dict.fromkeys((row["strategy"], row["codec"], row["projection"]) for row in rows)
        assert list(found) == [row[:3] for row in _ROWS]
    first = next(csv.DictReader(io.StringIO(files.csv.read_text())))
    assert first["on-pareto-front"] == "true"
    rows = leaderboard_rows(leaderboard(packed))
    assert (rows[0]["codec"], rows[0]["on-pareto-front"]) == ("none", True)
    assert curve_rows(packed)[0]["projection"] == "off"


def test_tables_without_them_have_no_such_columns(
    make_run: MakeRun, cells: Path, tmp_path: Path
) -> None:
    make_run("a")
    make_run("b", "strategy.name=krum")
    files = write_report(load_runs([cells]), tmp_path)
    for file in (files.csv, files.timing, files.curves):
        header = file.read_text().splitlines()[0].split(",")
        assert not {"codec", "projection", "on-pareto-front"} & {*header}
    assert "On the front" not in files.markdown.read_text()
    assert 'id="plot-bytes"' not in files.page.read_text()


def test_an_updates_bytes_are_of_all_that_were_sent(make_run: MakeRun, cells: Path) -> None:
    run = make_run("a", correct=[900, 900], uplink=1000)
    assert one_row(load_runs([run])).update_bytes is None  # nobody counted
    counted = make_run("b", correct=[900, 900], uplink=1000, counts={"valid": 3, "rejected": 1})
    assert one_row(load_runs([counted])).update_bytes == pytest.approx(250)


def one_row(comparison: Comparison) -> Row:
    (row,) = leaderboard(comparison)
    return row


def test_the_terminal_says_who_is_on_the_front_on_80_columns(packed: Comparison) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(terminal_table(packed))
    text = console.export_text()
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    for name, codec, projection, *_ in _ROWS:
        (line,) = [one for one in text.splitlines() if f"{name} · {codec} · {projection} " in one]
        on = {row.label for row in leaderboard(packed) if row.on_front}
        assert ("yes" in line) == (f"{name} · {codec} · {projection}" in on)
    assert "front: no other row has more accuracy for fewer bytes" in " ".join(text.split())


def test_bytes_are_a_clients_where_it_is_known_how_many_there_were(
    packed: Comparison, make_run: MakeRun
) -> None:
    up, both = traffics(packed.settings[0])
    assert (up.axis, both.axis) == (
        "bytes that a client sent in the run", "bytes that a client sent and got in the run"
    )  # fmt: skip
    costs = dict(zip((e.label for e in packed.settings[0].entries), up.costs, strict=True))
    assert costs["fedavg · drive · 255"] == pytest.approx(2 * 3_600 / 50)
    assert both.costs[0] - up.costs[0] == pytest.approx(8_000_000 / 50)
    lone = load_runs([make_run("lone")])
    (only,) = traffics(lone.settings[0])  # nobody knows its downlink, nor its clients
    assert (only.axis, only.costs) == ("bytes that all clients sent in the run", (2000.0,))


def test_the_front_is_listed_by_bytes_and_measured_against_its_best(packed: Comparison) -> None:
    (setting,) = packed.settings
    up, _ = traffics(setting)
    rows = kept(setting, up)
    assert [(row.label, row.accuracy, row.cost, row.to_best, row.share) for row in rows] == [
        ("fedavg · drive · 255", "96.1", "144 B", "-2.3", "1/2500"),
        ("fedavg · none · off", "96.6", "12.0 kB", "-1.8", "1/30"),
        ("fed3r · gram-int8 · 255", "97.6", "14.4 kB", "-0.8", "1/25"),
        ("fed3r · none · off", "98.4", "360 kB", "+0.0", "all"),
    ]


def test_marks_hold_the_seeds_and_the_noise_of_the_test_set(packed: Comparison) -> None:
    for row in bytes_data(packed.settings[0])["rows"]:
        assert row["low"] <= row["accuracy"] - 0.001  # a seed is one image below the mean
        assert row["high"] >= row["accuracy"] + 0.001
        assert row["high"] - row["low"] > 0.01


def test_a_strategy_keeps_its_colour_and_a_packing_its_dash(packed: Comparison) -> None:
    styles = line_styles(packed)
    assert len({styles[label].colour for label in styles if label.startswith("fedavg")}) == 1
    assert len({style.colour for style in styles.values()}) == 3
    assert styles["fedavg · none · off"].dash == styles["krum · none · off"].dash
    assert len({(style.colour, style.dash) for style in styles.values()}) == len(styles)


def test_the_page_begins_with_accuracy_against_bytes(packed: Comparison) -> None:
    text = page_html(packed, None)
    places = [text.index(f'id="{name}"') for name in ("plot-bytes", "leaderboard", "plot-rounds")]
    assert places == sorted(places)
    assert "3 strategies with 3 codecs and 2 projections on mnist5k" in text
    section = text[text.index('<section id="bytes">') : text.index('<section id="leaderboard">')]
    # Each way to count has its table, in the page even without a script.
    assert section.count("<table>") == 2
    assert section.index("fedavg · drive · 255") < section.index("fed3r · none · off")
    assert "krum" not in section
