"""What the page says about making a run again does make it again."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.config import load_config, parse_overrides
from server.record.runfolder import RunFolder, read_config
from simulations.report import load_runs
from simulations.report.page import page_html
from simulations.report.reproduce import command, common_values, to_toml

MakeRun = Callable[..., Path]


def again(line: str, folder: Path) -> dict[str, Any]:
    """The configuration that ``fedhead run`` would read."""
    program, verb, experiment, *options = shlex.split(line)
    assert (program, verb) == ("fedhead", "run")
    assert options[::2] == ["--set"] * (len(options) // 2)
    config = load_config(folder / experiment, parse_overrides(options[1::2]))
    return config.model_dump(exclude={"out", "name"})


VALUES = [
    "strategy.args.mu=0.1",
    "strategy.args.word=true story",
    'strategy.args.word="12"',
    'strategy.args.word="[1]"',
    "strategy.args.word=it's $HOME",
    'strategy.args.word="a \\"b\\" \\\\ \\n"',
    'strategy.args.word=" x "',
    'strategy.args.word=""',
    "strategy.args.word=Bär 🐻",
    "strategy.args.flag=true",
    "strategy.args.many=[1, 2.5]",
    "strategy.args.inner.lr=1e-05",
    "data.source=folder:/my images/of; birds",
    "simulation.cohort-memory=4GB",
    "train.lr=1e-7",
    "seed=7",
]


@pytest.mark.parametrize("override", VALUES)
def test_the_command_gives_the_run_its_configuration(
    make_run: MakeRun, cells: Path, tmp_path: Path, override: str
) -> None:
    make_run("a", "train.rounds=3")
    make_run("b", "train.rounds=3", "name=other", override)
    runs = load_runs([cells]).runs
    common = common_values(runs)
    (tmp_path / "experiment.toml").write_text(to_toml(common))
    for run in runs:
        line = command(run, common)
        expected = load_config(run.path / "config.toml").model_dump(exclude={"out", "name"})
        assert again(line, tmp_path) == expected
        assert "train.rounds" not in line  # all have it


def test_a_run_on_devices_is_made_again_on_devices(make_run: MakeRun, cells: Path) -> None:
    path = make_run("a")
    RunFolder(path, read_config(path)).bind_clients(simulated=False)
    comparison = load_runs([cells])
    (run,) = comparison.runs
    line = command(run, common_values([run]))
    assert line == "fedhead run experiment.toml --deployment DEPLOYMENT"
    found = page_html(comparison, None)
    assert line in found
    assert "the same bytes" not in found


def test_a_single_run_needs_no_options(make_run: MakeRun, cells: Path) -> None:
    make_run("a", "seed=3", "strategy.args.server-lr=0.5")
    (run,) = load_runs([cells]).runs
    assert command(run, common_values([run])) == "fedhead run experiment.toml"
