"""Reports on private runs, which leave out figures of their clients."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simulations.report import load_runs, terminal_table, write_report
from simulations.report.bytes_figure import bytes_data, kept, traffics
from simulations.report.leaderboard import leaderboard

MakeRun = Callable[..., Path]

UNTOLD = {
    "uplink": None,
    "rejected_updates": None,
    "client_tests": None,
    "client_accuracy_mean": None,
    "client_accuracy_p10": None,
    "client_accuracy_min": None,
    "downlink_bytes": None,
    "full_model_uplink_bytes": None,
    "counts": {"valid": None, "rejected": None},
}
ASKED = "train.clients-per-round=2"
POISSON = ("privacy.epsilon=8", "privacy.mechanism=poisson", ASKED)


def board(folder: Path) -> list[dict[str, str]]:
    text = (folder / "leaderboard.csv").read_text()
    return list(csv.DictReader(io.StringIO(text)))


def test_one_private_run_has_its_page_with_dashes(make_run: MakeRun, cells: Path) -> None:
    make_run("private", *POISSON, **UNTOLD)
    page = write_report(load_runs([cells]), cells).page.read_text()
    assert "nobody may know how many clients sent" in page
    assert "How the clients fare" not in page
    assert "Who holds what" not in page
    (row,) = board(cells)
    for column in ("uplink-bytes", "uplink-bytes-to-target", "rejected-updates",
                   "client-accuracy-mean", "client-accuracy-p10"):  # fmt: skip
        assert row[column] == "", column
    assert row["accuracy"] == "0.900000"


def test_beside_others_it_has_a_row_and_is_on_no_front(make_run: MakeRun, cells: Path) -> None:
    make_run("private", *POISSON, correct=(500, 990), population=9, **UNTOLD)
    make_run("plain", ASKED, correct=(500, 900), population=9, downlink_bytes=7)
    make_run("coded", ASKED, "backbone.projection=32", correct=(500, 880),
             population=9, uplink=100, downlink_bytes=7)  # fmt: skip
    comparison = load_runs([cells])
    rows = {row.label: row for row in leaderboard(comparison)}
    (private,) = [row for row in rows.values() if row.uplink_bytes is None]
    assert not private.on_front
    assert private.accuracy == 0.99
    assert private.rejected is None
    (setting,) = comparison.settings
    (up,) = traffics(setting)  # what comes down is not known of every run
    assert sorted(up.costs, key=str) == sorted([None, 2000 / 9, 200 / 9], key=str)
    assert [one.accuracy for one in kept(setting, up)] == ["88.0", "90.0"]
    assert None in bytes_data(setting)["traffics"][0]["costs"]
    files = write_report(comparison, cells)
    assert "| - |" in files.markdown.read_text()
    assert terminal_table(comparison)


def test_where_no_run_tells_its_bytes_there_is_no_figure_of_them(
    make_run: MakeRun, cells: Path
) -> None:
    for projection in ("off", "32"):
        keys = (*POISSON, f"backbone.projection={projection}")
        make_run(f"private-{projection}", *keys, **UNTOLD)
    page = write_report(load_runs([cells]), cells).page.read_text()
    assert 'id="bytes"' not in page
    assert "Uplink to the target" not in page


@pytest.mark.slow  # make test-page runs it
def test_a_browser_draws_what_is_told(browser: Any, make_run: MakeRun, cells: Path) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    make_run("private", *POISSON, **UNTOLD)
    make_run("plain", ASKED, "strategy.name=fedadam", correct=(400, 700))
    page = cells.parent / "report.html"
    shutil.copy(write_report(load_runs([cells]), cells).page, page)

    def lines(name: str) -> int:
        found = browser.find_elements("css selector", f"#plot-{name} .scatterlayer .trace .js-line")
        return len([one for one in found if one.value_of_css_property("stroke-width") != "0px"])

    browser.get(page.as_uri())
    WebDriverWait(browser, 60).until(lambda _: lines("uplink") > 0)
    assert (lines("rounds"), lines("uplink")) == (2, 1)
    assert browser.get_log("browser") == []
