"""A comparison of which some runs are missing: which ones and why, and a report of all others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from common.config import Config
from fedhead.cli.compare import SOME_FAILED, _compare
from simulations.compare.cells import Cell, ComparisonSpec
from simulations.compare.compare import Chosen

REASON = "dirichlet(0.01) partition: no draw in 20 gave each client an example"


def cell(strategy: str, partition: str, seed: int) -> Cell:
    return Cell(strategy, partition, seed, (), Config(), f"{strategy}-{partition}-{seed}")


def test_a_reason_is_said_once_with_all_cells_that_it_keeps_from_running() -> None:
    failed = [(cell(s, "dirichlet:0.01", 1), REASON) for s in ("fedavg", "fed3r")]
    other = (cell("fedavg", "", 0), "no such file")
    assert Chosen((), (*failed, other)).notes == (
        f"Could not run: fedavg, dirichlet:0.01, seed 1; fed3r, dirichlet:0.01, seed 1: {REASON}",
        "Could not run: fedavg, seed 0: no such file",
    )


def test_a_cell_that_cannot_run_is_named_and_the_others_are_reported(
    make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    chosen = Chosen((make_run("a"),), ((cell("fedavg", "dirichlet:0.01", 1), REASON),))
    monkeypatch.setattr("simulations.compare.compare.run_comparison", lambda *_, **__: chosen)
    spec = ComparisonSpec(Config(), (), (), (0,), {}, 0.2)
    with pytest.raises(typer.Exit) as ended:
        _compare(spec, tmp_path, 1, None, False, as_asked=False)
    assert ended.value.exit_code == SOME_FAILED
    said = capsys.readouterr()
    assert "90.0" in said.out
    assert f"fedavg, dirichlet:0.01, seed 1: {REASON}" in said.err.replace("\n", " ")
    assert REASON in (tmp_path / "report.html").read_text()
