"""Accuracy against bytes in a real browser: every row is named, nothing covers anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from simulations.report import load_runs, write_report
from tests.simulations.report.browsing import texts, wait_for, widen

pytestmark = pytest.mark.slow  # make test-page runs them

MakeRun = Callable[..., Path]

_DRAWN = "#plot-bytes .annotation"

# codec, projection, right answers of 1,000 and bytes of a round, for each of two strategies
_PACKINGS = (
    ("none", "off", 966, 300_000), ("none", "255", 964, 60_000), ("int8", "off", 966, 80_000),
    ("int8", "255", 963, 15_000), ("drive", "off", 962, 12_000), ("drive", "255", 965, 3_600),
)  # fmt: skip


@pytest.fixture
def page(browser: Any, make_run: MakeRun, cells: Path) -> Iterator[Any]:
    """Six rows of each of two strategies, and one that failed; the log is empty at the end."""
    make_run("krum", "strategy.name=krum", "codec.up=none", correct=[300, 301], uplink=300_000,
             population=50, downlink_bytes=600_000)  # fmt: skip
    for name, fewer in (("fedavg", 0), ("fedprox", 1)):
        for codec, projection, right, uplink in _PACKINGS:
            make_run(
                f"{name}-{codec}-{projection}", f"strategy.name={name}", f"codec.up={codec}",
                f"backbone.projection={projection}", correct=[500, right - fewer], uplink=uplink,
                population=50, downlink_bytes=600_000 if projection == "off" else 100_000,
            )  # fmt: skip
    browser.get(write_report(load_runs([cells]), cells).page.resolve().as_uri())
    wait_for(browser, _DRAWN)
    yield browser
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert browser.get_log("browser") == []


def _colliding(browser: Any) -> list[list[str]]:
    found: list[list[str]] = browser.execute_script(
        """
        const names = [...document.querySelectorAll("#plot-bytes .annotation-text")];
        const marks = [...document.querySelectorAll("#plot-bytes .point")];
        const shared = (a, b, from, to) => Math.min(a[to], b[to]) - Math.max(a[from], b[from]);
        const over = (a, b) =>
          shared(a, b, "left", "right") > 0.5 && shared(a, b, "top", "bottom") > 0.5;
        const box = (one) => one.getBoundingClientRect();
        return names.flatMap((name, i) => [...names.slice(i + 1), ...marks]
          .filter((other) => over(box(name), box(other)))
          .map((other) => [name.textContent, other.textContent]));
        """
    )
    return found


def test_on_a_desk_each_mark_has_its_name_and_full_ones_are_on_the_front(page: Any) -> None:
    widen(page, 1280, _DRAWN)
    names = texts(page, "#plot-bytes .annotation-text")
    assert set(names) == {
        f"{name} · {codec} · {projection}"
        for name in ("fedavg", "fedprox")
        for codec, projection, *_ in _PACKINGS
    } | {"krum · none · off, 30.1 %"}  # whose mark is at the lower edge, far above that
    assert len(page.find_elements("css selector", "#plot-bytes .point")) == 13
    low, high = page.execute_script(
        "return document.getElementById('plot-bytes')._fullLayout.yaxis.range"
    )
    assert 0.7 < low < high <= 1.01  # the target is 90 %
    assert _colliding(page) == []
    symbols = page.execute_script(
        "return document.getElementById('plot-bytes').data.filter(t => t.marker)"
        ".map(t => [t.text[0].split('<br>')[0], t.marker.symbol])"
    )
    full = {label for label, symbol in symbols if not symbol.endswith("-open")}
    assert full == {"fedavg · drive · 255", "fedavg · int8 · off"}
    assert texts(page, "#bytes .traffic:not([hidden]) tbody th") == [
        "fedavg · drive · 255", "fedavg · int8 · off"
    ]  # fmt: skip


def test_a_phone_names_the_front_and_numbers_the_others(page: Any) -> None:
    widen(page, 400, _DRAWN)
    root = "document.documentElement"
    assert page.execute_script(f"return {root}.scrollWidth - {root}.clientWidth") == 0
    assert _colliding(page) == []
    names = set(texts(page, "#plot-bytes .annotation-text"))
    assert names == {"fedavg · drive · 255", "fedavg · int8 · off", *map(str, range(1, 12))}
    lines = texts(page, "#bytes-numbers span")
    assert [line.split()[0] for line in lines] == [str(n) for n in range(1, 12)]
    assert "fedprox · drive · 255" in lines[0]  # the fewest bytes first


def test_byte_ticks_are_read_without_counting_zeros(page: Any) -> None:
    widen(page, 1280, _DRAWN)
    ticks = texts(page, "#plot-bytes .xtick")
    assert len(ticks) >= 3
    assert all(tick.partition(" ")[2] in ("B", "kB", "MB") for tick in ticks)


def test_the_button_counts_what_comes_down_too(page: Any) -> None:
    def axis() -> str:
        return str(page.find_element("css selector", "#plot-bytes .xtitle").text)

    assert axis() == "bytes that a client sent in the run"
    first = texts(page, "#bytes .traffic:not([hidden]) td")
    button = page.find_element("css selector", "#bytes .chips button[data-traffic='1']")
    button.send_keys(" ")  # by keyboard
    assert axis() == "bytes that a client sent and got in the run"
    assert texts(page, "#bytes .traffic:not([hidden]) td") != first
    pressed = page.find_elements("css selector", "#bytes .chips button[aria-pressed='true']")
    assert [one.text for one in pressed] == ["up and down"]


def test_who_cannot_see_the_figure_is_told_the_front(page: Any) -> None:
    says = page.find_element("id", "plot-bytes").get_attribute("aria-label")
    assert says.startswith("Accuracy against bytes that a client sent in the run. On the front: ")
    front, _, rest = says.partition(" Not on it: ")
    assert "fedavg · drive · 255: 96.5 % for 144 B; fedavg · int8 · off: 96.6 %" in front
    assert rest.count("%") == 11


def test_on_a_desk_no_column_of_the_leaderboard_is_cut(page: Any) -> None:
    widen(page, 1280, _DRAWN)
    room = "const one = document.querySelector('#leaderboard .scroll'); return one.{}Width"
    widths = [page.execute_script(room.format(which)) for which in ("scroll", "client")]
    assert widths[0] <= widths[1]
