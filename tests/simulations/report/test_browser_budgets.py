"""Accuracy against privacy in a real browser: every line is named, on a phone by the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from simulations.report import load_runs, write_report
from tests.simulations.report.browsing import texts, wait_for, widen

pytestmark = pytest.mark.slow  # make test-page runs them

MakeRun = Callable[..., Path]

_DRAWN = "#plot-privacy .point"

_RIGHT = {
    "fedavg": {"1": 847, "4": 913, "8": 929, "inf": 940},
    "fedprox": {"1": 846, "4": 914, "8": 928, "inf": 941},
    "fed3r": {"1": 816, "4": 854, "8": 884, "inf": 955},
    "krum": {"inf": 930},
}


@pytest.fixture
def page(browser: Any, make_run: MakeRun, cells: Path) -> Iterator[Any]:
    for name, budgets in _RIGHT.items():
        for epsilon, right in budgets.items():
            make_run(
                f"{name}-{epsilon}", f"strategy.name={name}", f"privacy.epsilon={epsilon}",
                f"partition.test-fraction={0.2 if epsilon == 'inf' else 0}", correct=[500, right],
            )  # fmt: skip
    browser.get(write_report(load_runs([cells]), cells).page.resolve().as_uri())
    wait_for(browser, _DRAWN)
    yield browser
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert browser.get_log("browser") == []


def _overlaps(browser: Any, selector: str) -> list[list[str]]:
    found: list[list[str]] = browser.execute_script(
        """
        const names = [...document.querySelectorAll(arguments[0])];
        const box = (one) => one.getBoundingClientRect();
        const meet = (a, b) => Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1
          && Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1;
        return names.flatMap((one, i) => names.slice(i + 1)
          .filter((other) => meet(box(one), box(other)))
          .map((other) => [one.textContent, other.textContent]));
        """,
        selector,
    )
    return found


def test_on_a_desk_each_line_has_its_name_and_a_mark_at_each_budget(page: Any) -> None:
    widen(page, 1280, _DRAWN)
    assert {*texts(page, "#plot-privacy .annotation-text")} == {*_RIGHT}
    assert _overlaps(page, "#plot-privacy .annotation-text") == []
    assert len(page.find_elements("css selector", "#plot-privacy .point")) == 9
    assert texts(page, "#plot-privacy .xtick") == ["1", "4", "8"]
    edge = page.execute_script(
        "const [plot, ...names] = [document.querySelector('#plot-privacy'), "
        "...document.querySelectorAll('#plot-privacy .annotation-text')]"
        ".map((one) => one.getBoundingClientRect().right);"
        "return plot - Math.max(...names);"
    )
    assert edge >= 0


def test_a_level_without_privacy_is_dashed_across_the_plot(page: Any) -> None:
    widen(page, 1280, _DRAWN)
    levels = page.execute_script(
        "return document.getElementById('plot-privacy').data"
        ".filter((one) => one.line.dash === 'dash').map((one) => one.y[0])"
    )
    assert sorted(levels) == [0.93, 0.94, 0.941, 0.955]


def test_a_phone_scrolls_the_table_and_nothing_else(page: Any) -> None:
    widen(page, 400, _DRAWN)
    root = "document.documentElement"
    assert page.execute_script(f"return {root}.scrollWidth - {root}.clientWidth") == 0
    assert texts(page, "#plot-privacy .annotation-text") == []
    assert {*texts(page, "#privacy tbody th")} == {*_RIGHT}
    assert _overlaps(page, "#plot-privacy .xtick text") == []


def test_who_cannot_see_the_figure_is_told_each_line(page: Any) -> None:
    says = page.find_element("id", "plot-privacy").get_attribute("aria-label")
    assert "fedavg: 84.7 % at 1, 91.3 % at 4, 92.9 % at 8, 94.0 % without privacy" in says
    assert "krum: 93.0 % without privacy" in says
