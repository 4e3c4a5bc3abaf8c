"""A data set of a user's own, a file beside the experiment, in everything that reads data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from common.config import load_config
from simulations.compare.cells import _function_source
from simulations.engines.flower import run_flower
from simulations.run import new_run, open_run, run_in_process

Fedhead = Callable[..., tuple[int, str, str]]
Make = Callable[..., Path]

ROOT = Path(__file__).parents[2]
# As docs/own-data.md shows it.
OWN = (ROOT / "docs/examples/data/mydata.py").read_text()
KEYS = """
[backbone]
weights = "random"
input-size = 32
distill-steps = 0
[partition]
scheme = "natural"
column = "writer"
num-clients = 8
[data]
calibration-examples = 64
[train]
rounds = 2
[baseline]
enabled = false
"""


@pytest.fixture
def experiment(quick: Make, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """An experiment on the example's data, in a folder of its own; the export is left out."""
    pytest.importorskip("sklearn", reason="pip install 'fedhead[demo]'")
    module = f"mydata_{request.node.name}"  # Python imports a name only once
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / f"{module}.py").write_text(OWN)
    keys = KEYS.replace("[data]", f'[data]\nsource = "{module}:eights"')
    (folder / "mine.toml").write_text(keys)
    return folder / "mine.toml"


def test_it_is_partitioned_and_trained_on_and_goes_on_from_elsewhere(
    experiment: Path, fedhead: Fedhead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = fedhead("partition", experiment, "--out", tmp_path / "p.png")
    assert code == 0, err
    assert out.startswith("8 clients, ")
    runs = [tmp_path / name for name in ("whole", "short")]
    for run, rounds in zip(runs, (2, 1), strict=True):
        code, out, err = fedhead(
            "run", experiment, "--out", run, "--set", f"train.rounds={rounds}", "--json"
        )
        assert code == 0, err
    whole = json.loads((runs[0] / "summary.json").read_text())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, out, err = fedhead("resume", runs[1], "--set", "train.rounds=2", "--json")
    assert code == 0, err
    assert json.loads(out)["head_sha256"] == whole["head_sha256"]
    assert open_run(runs[1]).data.root == str(experiment.parent)


def test_a_change_of_its_file_is_another_cell_of_a_comparison(experiment: Path) -> None:
    data = load_config(experiment).data
    before = _function_source(data.source, data.root)
    assert _function_source("digits", "") == ""
    file = next(experiment.parent.glob("*.py"))
    file.write_text(f"{OWN}\n# another\n")
    assert _function_source(data.source, data.root) != before


@pytest.mark.slow
def test_it_is_probed_and_compared_by_other_processes(experiment: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    own = load_config(experiment).data.source
    for words, folder in (
        (["compare", "mine/mine.toml", "--strategies", "fedavg,fedncm", "--partitions", "",
          "--seeds", "0", "--jobs", "2", "--out", "out"], tmp_path),
        (["probe", own, "--examples", "200", "--set", "backbone.weights=random",
          "--set", "backbone.input-size=32", "--sizes", "32"], experiment.parent),
    ):  # fmt: skip
        command = [sys.executable, "-m", "fedhead", *words]
        done = subprocess.run(
            command, env=environment, cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out" / "cells").glob("*/summary.json"))) == 2


@pytest.mark.slow
def test_flowers_engine_finds_it(experiment: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="pip install 'fedhead[flower]'")
    here, there = (
        new_run(load_config(experiment, {"out": str(tmp_path / name)})) for name in ("a", "b")
    )
    own = run_in_process(here)
    assert run_flower(there, num_supernodes=1)["head_sha256"] == own["head_sha256"]
