"""The page in a real browser: it draws, sorts and changes its colours, and complains of nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from simulations.report import load_runs, write_report
from tests.simulations.report.browsing import texts

pytestmark = pytest.mark.slow  # make test-page runs them

MakeRun = Callable[..., Path]

_CURVES = "#plot-{} .scatterlayer .trace .js-line"
_ROWS = "#leaderboard .setting:not([hidden]) tbody th"
_STRATEGIES = ("fedavg", "fedprox", "krum", "median", "scaffold", "fednova", "fedadam", "ditto")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the page of ``page`` is kept: the first test of this file writes it."""
    return tmp_path_factory.mktemp("page") / "report.html"


@pytest.fixture
def page(browser: Any, make_run: MakeRun, cells: Path, written: Path) -> Iterator[Any]:
    """A report of eight strategies in two partitions; the browser's log is empty at the end."""
    for scheme in ("iid", "pathological") if not written.exists() else ():
        for i, name in enumerate(_STRATEGIES):
            for seed in (0, 1):
                last = 900 + seed - 10 * (i if scheme == "iid" else -i)
                make_run(f"{scheme}-{name}-{seed}", f"partition.scheme={scheme}", f"seed={seed}",
                         f"strategy.name={name}", correct=[500, 700, last], clients=[5, 6, 7, 8, 9],
                         uplink=1000 * (i + 1))  # fmt: skip
    if not written.exists():
        shutil.copy(write_report(load_runs([cells]), cells).page, written)
    browser.get(written.as_uri())
    _wait(browser, lambda: _count(browser, _CURVES.format("uplink")) > 0)
    yield browser
    assert browser.get_log("browser") == []


def _wait(browser: Any, condition: Callable[[], bool]) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 60).until(lambda _: condition())


def _count(browser: Any, selector: str) -> int:
    return len(browser.find_elements("css selector", selector))


def _drawn(browser: Any) -> list[str]:
    """Strategies of the curves with a line, as plotly holds them."""
    names: list[str] = browser.execute_script(
        "return document.getElementById('plot-rounds').data.filter(t => t.text).map(t => t.text[0])"
    )
    return names


def _click(browser: Any, selector: str, text: str) -> None:
    found = browser.find_elements("css selector", selector)
    next(one for one in found if one.is_displayed() and one.text.strip() == text).click()


def test_the_best_few_are_drawn_at_first_and_others_by_click(page: Any) -> None:
    assert _drawn(page) == list(_STRATEGIES)[:6]
    for plot in ("rounds", "uplink"):
        assert _count(page, _CURVES.format(plot)) == 12  # a band and a line each
    for plot, marks in (("clients", ".boxlayer .trace"), ("confusion", ".heatmaplayer image"),
                        ("partition", ".heatmaplayer image")):  # fmt: skip
        assert _count(page, f"#plot-{plot} {marks}") >= 1
    _click(page, "#chips button", "ditto")
    assert "ditto" in _drawn(page)
    _click(page, "#chips button", "all 8")
    assert set(_drawn(page)) == set(_STRATEGIES)


def test_another_setting_changes_tables_and_curves(page: Any) -> None:
    first = texts(page, _ROWS)
    assert first == list(_STRATEGIES)
    page.find_element("css selector", "#setting option:nth-child(2)").click()
    assert texts(page, _ROWS) == first[::-1]
    assert _drawn(page) == first[:1:-1]


def test_a_click_on_a_heading_sorts_and_another_turns_around(page: Any) -> None:
    def uplinks() -> list[str]:
        head = "//div[contains(@class,'setting') and not(@hidden)]//th[contains(.,'Uplink in all')]"
        page.find_element("xpath", f"{head}//button").click()
        return texts(page, _ROWS)

    page.find_element("css selector", "#setting option:nth-child(2)").click()
    assert uplinks() == list(_STRATEGIES)  # the fewest bytes first
    assert uplinks() == list(_STRATEGIES)[::-1]


def test_light_and_dark_follow_the_system_and_the_button(page: Any) -> None:
    def background() -> str:
        return str(page.execute_script("return getComputedStyle(document.body).backgroundColor"))

    def system(scheme: str) -> None:
        feature = {"name": "prefers-color-scheme", "value": scheme}
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    system("light")
    light = background()
    system("dark")
    dark = background()
    assert light != dark
    page.find_element("id", "theme").click()
    assert background() == light
    page.find_element("id", "theme").click()
    assert background() == dark


def test_a_phone_scrolls_tables_not_the_page(page: Any) -> None:
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True},
    )
    page.refresh()
    _wait(page, lambda: _count(page, _CURVES.format("uplink")) > 0)
    assert page.execute_script("return document.documentElement.scrollWidth") == 360
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_on_a_desk_no_column_of_the_leaderboard_is_cut(
    browser: Any, make_run: MakeRun, cells: Path
) -> None:
    adam = ("train.optimizer=adam", "train.schedule=cosine", "train.warmup-rounds=1")
    for seed in (0, 1):
        own = (f"seed={seed}", *adam, "train.loss=mine:smooth")
        make_run(f"a{seed}", *own, clients=[5] * 12, rejected_updates=3, uplink=517_000)
        make_run(f"b{seed}", f"seed={seed}", "strategy.name=centered_clipping", clients=[5] * 12)
    size = {"width": 1280, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(write_report(load_runs([cells]), cells).page.resolve().as_uri())
    room = "const one = document.querySelector('#leaderboard .scroll'); return one.{}Width"
    assert _count(browser, "#leaderboard thead th") == 13
    widths = [browser.execute_script(room.format(which)) for which in ("scroll", "client")]
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert widths[0] <= widths[1]


@pytest.fixture
def run_page(browser: Any, make_run: MakeRun, cells: Path) -> Iterator[Any]:
    """The page of one run of 44 classes, of which one has two test images."""
    names = [f"a class named {i}" for i in range(44)]
    rows = [[20 if i == j else int(j == (i + 1) % 44) for j in range(44)] for i in range(44)]
    rows[0][0] = 1
    make_run("run", correct=[200, 700, 880], classes=names, clients=[5, *range(10)] * 2,
             confusion=rows)  # fmt: skip
    files = write_report(load_runs([cells]), cells)
    browser.get(files.page.resolve().as_uri())
    _wait(browser, lambda: _count(browser, "#plot-partition .heatmaplayer image") > 0)
    yield browser
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert browser.get_log("browser") == []


def _narrow(browser: Any) -> None:
    size = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.refresh()
    _wait(browser, lambda: _count(browser, "#plot-partition .heatmaplayer image") > 0)


def test_one_run_shows_curve_matrix_and_classes_first(run_page: Any) -> None:
    places = [
        run_page.find_element("css selector", selector).rect["y"]
        for selector in ("#result", "#plot-rounds", "#plot-confusion", "#by-class table",
                         "#plot-clients", "#plot-partition", "#reproduce")
    ]  # fmt: skip
    assert places == sorted(places)
    assert not _count(run_page, "#leaderboard, #plot-uplink, #chips")
    assert _count(run_page, "#plot-clients .barlayer .trace") == 1  # not one lonely box


def test_an_accuracy_axis_begins_with_round_1_and_holds_its_noise(run_page: Any) -> None:
    axes = run_page.execute_script(
        "const {xaxis, yaxis} = document.getElementById('plot-rounds')._fullLayout;"
        "return [xaxis.range, xaxis.tickvals, yaxis.range]"
    )
    (first, last), ticks, (low, high) = axes
    assert ticks == [1, 2, 3]
    assert 0.5 <= first <= 1 < 3 <= last
    assert low < 0.176  # Wilson's interval for 200 of the 923 images, which begins at 0.1765
    assert high > 0.94  # the ridge head's


def test_the_matrix_has_the_totals_of_its_rows(run_page: Any) -> None:
    totals = texts(run_page, "#plot-confusion .y2tick text")
    assert sorted(totals) == sorted(["2", *["21"] * 43])
    names = texts(run_page, "#plot-confusion .ytick text")
    assert len(names) == 44


def test_toolbars_show_only_under_the_pointer(run_page: Any) -> None:
    from selenium.webdriver import ActionChains

    def opacity() -> float:
        bar = run_page.find_element("css selector", "#plot-rounds .modebar")
        return float(bar.value_of_css_property("opacity"))

    ActionChains(run_page).move_to_element(run_page.find_element("id", "theme")).perform()
    _wait(run_page, lambda: opacity() == 0)
    ActionChains(run_page).move_to_element(run_page.find_element("id", "plot-rounds")).perform()
    _wait(run_page, lambda: opacity() == 1)


@pytest.mark.parametrize("fixture", ["page", "run_page"])
def test_at_400_pixels_nothing_overflows_and_no_labels_collide(
    request: pytest.FixtureRequest, fixture: str
) -> None:
    found = request.getfixturevalue(fixture)
    _narrow(found)
    page = "document.documentElement"
    assert found.execute_script(f"return {page}.scrollWidth - {page}.clientWidth") == 0
    colliding = found.execute_script(
        """
        const shared = (a, b, from, to) => Math.min(a[to], b[to]) - Math.max(a[from], b[from]);
        const over = (a, b) =>
          shared(a, b, "left", "right") > 0.5 && shared(a, b, "top", "bottom") > 0.5;
        const labels = ".xtick text, .ytick text, .y2tick text, .infolayer text";
        return [...document.querySelectorAll(".plot")].filter((plot) => {
          const all = [...plot.querySelectorAll(labels)].map((one) => one.getBoundingClientRect());
          return all.some((a, i) => all.slice(i + 1).some((b) => over(a, b)));
        }).map((plot) => plot.id);
        """
    )
    assert colliding == []


def test_who_cannot_see_a_plot_is_told_what_it_shows(run_page: Any) -> None:
    plots = run_page.find_elements("css selector", ".plot")
    assert {plot.get_attribute("role") for plot in plots} == {"img"}
    labels = [plot.get_attribute("aria-label") for plot in plots]
    assert labels[0] == (
        "Accuracy against rounds. fedavg: 20.0 % after round 1, 88.0 % after round 3."
    )
    assert "44 classes: 44 mistakes" in labels[1]
    assert not run_page.find_elements("css selector", "table:not(:has(caption))")


def test_on_paper_the_page_is_light_and_its_plots_are_as_wide_as_it(run_page: Any) -> None:
    run_page.execute_script("document.documentElement.dataset.theme = 'dark'")
    run_page.execute_script("dispatchEvent(new Event('beforeprint'))")
    width = run_page.find_element("id", "plot-rounds").rect["width"]
    assert width < 700
    assert run_page.find_element("css selector", "#plot-rounds .main-svg").rect["width"] <= width
    assert run_page.find_element("tag name", "html").get_attribute("data-theme") == "light"
    run_page.execute_script("dispatchEvent(new Event('afterprint'))")
    assert run_page.find_element("tag name", "html").get_attribute("data-theme") == "dark"
