"""How a report tells who took part in runs of real devices and phones, and who did not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.errors import RunError
from simulations.report import load_runs, write_report

MakeRun = Callable[..., Path]

ROUND: dict[str, Any] = {
    "cohort": 130,
    "valid": 100,
    "dropouts": {"over-selected": 20, "declined": 8, "refused": 2},
    "phase-seconds": {"waiting": [3.0, 10.0], "training": [2.0, 4.0]},
}


def test_a_page_tells_participation_drop_outs_and_phases(make_run: MakeRun, cells: Path) -> None:
    make_run("fleet", counts=ROUND)
    page = write_report(load_runs([cells]), cells).page.read_text()
    section = page[page.index('<section id="participation">') :]
    section = section[: section.index("</section>")]
    cells_of = [
        re.findall(r">([^<>\n]+)<", row.split("</tr>")[0]) for row in section.split("<tr>")[1:]
    ]
    # Two rounds alike: sums of counts, medians of seconds.
    assert cells_of == [
        ["asked", "260"],
        ["counted", "200", "76.9 %"],
        ["over-selected", "40", "15.4 %"],
        ["declined", "16", "6.2 %"],
        ["refused", "4", "1.5 %"],
        ["seconds waiting", "3", "10"],
        ["seconds training", "2", "4"],
    ]
    assert '<a href="#participation">' in page


def test_of_simulated_clients_the_page_has_no_such_part(make_run: MakeRun, cells: Path) -> None:
    make_run("simulated")
    assert "Who took part" not in write_report(load_runs([cells]), cells).page.read_text()


@pytest.mark.parametrize("wrong", [
    {"dropouts": {"late": -1}}, {"phase-seconds": {"waiting": [1.0]}},
    {"phase-seconds": {"waiting": [1.0, -2.0]}},
])  # fmt: skip
def test_impossible_figures_are_named(
    make_run: MakeRun, cells: Path, wrong: dict[str, Any]
) -> None:
    make_run("fleet", counts=ROUND | wrong)
    with pytest.raises(RunError, match="metrics.jsonl"):
        load_runs([cells])


def test_drop_outs_are_columns_of_the_curves(make_run: MakeRun, cells: Path) -> None:
    run = make_run("fleet", counts=ROUND)
    write_report(load_runs([cells]), cells)
    header, first, *_ = (cells / "curves.csv").read_text().splitlines()
    row = dict(zip(header.split(","), first.split(","), strict=True))
    assert row["dropouts/declined"] == "8"
    assert not any(name.startswith("phase-seconds") for name in row)
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["valid"] == 100
