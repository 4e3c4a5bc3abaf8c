"""The page in a real browser: it draws, sorts and changes its colours, and complains of nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from simulations.report import load_runs, write_report

MakeRun = Callable[..., Path]

_CURVES = "#plot-{} .scatterlayer .trace .js-line"
_STRATEGIES = ("fedavg", "fedprox", "krum", "median", "scaffold", "fednova", "fedadam", "ditto")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="pip install selenium")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no Chromium: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options, webdriver.ChromeService(driver))
    chrome.set_script_timeout(60)
    # Whatever the page asks the network for fails, and is an error in the log.
    chrome.execute_cdp_cmd("Network.enable", {})
    chrome.execute_cdp_cmd(
        "Network.emulateNetworkConditions",
        {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0},
    )
    yield chrome
    chrome.quit()


@pytest.fixture
def page(browser: Any, make_run: MakeRun, cells: Path) -> Iterator[Any]:
    """A report of eight strategies in two partitions; the browser's log is empty at the end."""
    for scheme in ("iid", "pathological"):
        for i, name in enumerate(_STRATEGIES):
            for seed in (0, 1):
                last = 900 + seed - 10 * (i if scheme == "iid" else -i)
                make_run(f"{scheme}-{name}-{seed}", f"partition.scheme={scheme}", f"seed={seed}",
                         f"strategy.name={name}", correct=[500, 700, last], clients=[5, 6, 7, 8, 9],
                         uplink=1000 * (i + 1))  # fmt: skip
    files = write_report(load_runs([cells]), cells)
    browser.get(files.page.resolve().as_uri())
    _wait(browser, lambda: _count(browser, _CURVES.format("uplink")) > 0)
    yield browser
    assert browser.get_log("browser") == []


def _wait(browser: Any, condition: Callable[[], bool]) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 60).until(lambda _: condition())


def _count(browser: Any, selector: str) -> int:
    return len(browser.find_elements("css selector", selector))


def _texts(browser: Any, selector: str) -> list[str]:
    return [found.text.strip() for found in browser.find_elements("css selector", selector)]


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
    first = _texts(page, ".setting:not([hidden]) .sortable tbody th")
    assert first == list(_STRATEGIES)
    page.find_element("css selector", "#setting option:nth-child(2)").click()
    assert _texts(page, ".setting:not([hidden]) .sortable tbody th") == first[::-1]
    assert _drawn(page) == first[:1:-1]


def test_a_click_on_a_heading_sorts_and_another_turns_around(page: Any) -> None:
    def uplinks() -> list[str]:
        head = "//div[contains(@class,'setting') and not(@hidden)]//th[contains(.,'Uplink in all')]"
        page.find_element("xpath", f"{head}//button").click()
        return _texts(page, ".setting:not([hidden]) .sortable tbody th")

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
