"""run --overwrite: the former run goes when the new one has a round, and not before."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import server.app
from common.config import load_config
from server.export.runtime_cards import ExportReport
from server.record.replaced import replaced_of
from server.record.runfolder import RunFolder
from simulations.run import new_run, run_in_process

Fedhead = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts a process, and has tests of its own."""
    monkeypatch.setattr(server.app, "export", lambda *_: ExportReport("model", Path(), 0, ""))


@pytest.fixture
def experiment(tiny_toml: str, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(tiny_toml)
    return path


@pytest.fixture(scope="module")
def finished(tiny_toml: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.toml").write_text(tiny_toml)
    settings = {"out": str(folder / "tiny"), "train": {"rounds": 1}}
    run = new_run(load_config(folder / "tiny.toml", settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server.app, "export", lambda *_: ExportReport("model", Path(), 0, ""))
        run_in_process(run)
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """The same in the default folder of the test's commands."""
    return Path(shutil.copytree(finished, tmp_path / "runs" / "tiny"))


def content(run: Path) -> dict[str, bytes]:
    names = [p for p in run.rglob("*") if p.is_file() and not p.name.startswith(".")]
    return {str(p.relative_to(run)): p.read_bytes() for p in names}


def begin_anew(run: Path, experiment: Path) -> None:
    """As a process leaves it that is killed once it has moved the former run aside."""
    run.rename(replaced_of(run))
    RunFolder(run, load_config(experiment))


def test_without_out_the_default_folder_is_replaced(
    fedhead: Fedhead, experiment: Path, run: Path
) -> None:
    before = json.loads((run / "run.json").read_text())["run-id"]
    code, _, err = fedhead("run", experiment, "--overwrite", "--set", "train.rounds=2")
    assert code == 0, err
    assert json.loads((run / "summary.json").read_text())["rounds"] == 2
    assert json.loads((run / "run.json").read_text())["run-id"] != before
    assert [path.name for path in run.parent.iterdir()] == ["tiny"]


@pytest.mark.parametrize(
    "wrong",
    [
        "data.source=folder:/nowhere",
        "partition.num-clients=100000",
        "strategy.name=fedavgg",
        "strategy.init-from=nowhere",
        "backbone.weights=file:/nowhere.pt",
    ],
)
def test_a_run_stays_where_its_successor_never_begins(
    fedhead: Fedhead, experiment: Path, run: Path, wrong: str
) -> None:
    before = content(run)
    settings = ("--set", wrong, "--set", "train.clients-per-round=0")
    code, _, err = fedhead("run", experiment, "--overwrite", *settings)
    assert code == 1
    assert "Traceback" not in err
    assert content(run) == before
    assert [path.name for path in run.parent.iterdir()] == ["tiny"]


def test_a_run_stays_where_its_successor_is_interrupted_before_a_round(
    fedhead: Fedhead, experiment: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(server.app, "baselines", interrupt)
    before = content(run)
    code, _, err = fedhead("run", experiment, "--overwrite")
    assert code == 130
    assert "interrupted before the first round" in err
    assert f"{run} holds its former run again" in err
    assert content(run) == before


def test_a_successor_that_has_a_round_goes_on_itself(
    fedhead: Fedhead, experiment: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(server.app, "ask_clients", interrupt)
        code, _, err = fedhead("run", experiment, "--overwrite", "--set", "train.rounds=3")
    assert code == 130
    assert f"continue with: fedhead resume {run}" in err
    assert not replaced_of(run).exists()
    assert fedhead("resume", run)[0] == 0
    assert json.loads((run / "summary.json").read_text())["rounds"] == 3


@pytest.mark.parametrize("lock", [".lock", ".operator.lock"])
def test_a_run_at_work_is_not_overwritten(
    fedhead: Fedhead, experiment: Path, run: Path, lock: str
) -> None:
    before = content(run)
    with (run / lock).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        code, _, err = fedhead("run", experiment, "--overwrite")
    assert (code, err) == (1, f"fedhead: {run}: another process is at work on this run\n")
    assert content(run) == before


@pytest.mark.parametrize("command", ["run", "resume", "export"])
def test_what_a_killed_process_had_moved_aside_is_back_at_the_next_start(
    fedhead: Fedhead, experiment: Path, run: Path, command: str
) -> None:
    before = content(run)
    begin_anew(run, experiment)
    (run / "flower.log").write_text("why it failed")
    arguments = {
        "run": ("--out", run),  # refused: there is a run again
        "resume": ("--set", "train.lr=7"),  # refused likewise, it never gets to work
        "export": ("--target", "head"),
    }[command]
    _, _, err = fedhead(command, experiment if command == "run" else run, *arguments)
    assert f"{run} holds its former run again" in err
    for name, data in before.items():
        assert (run / name).read_bytes() == data
    assert (run / "flower-failed.log").read_text() == "why it failed"
    assert not replaced_of(run).exists()


def test_what_a_killed_process_had_moved_aside_goes_where_the_new_run_has_begun(
    fedhead: Fedhead, experiment: Path, run: Path
) -> None:
    begin_anew(run, experiment)
    (run / "checkpoint" / "000001").mkdir(parents=True)
    fedhead("resume", run, "--set", "train.lr=7")
    assert not replaced_of(run).exists()
    assert (run / "checkpoint" / "000001").exists()


def test_a_folder_that_holds_no_run_is_not_overwritten(
    fedhead: Fedhead, experiment: Path, tmp_path: Path
) -> None:
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    thesis = tmp_path / "runs" / "tiny" / "thesis.txt"
    thesis.write_text("mine")
    code, _, err = fedhead("run", experiment, "--overwrite")
    assert code == 1
    assert "is not a run: not overwritten" in err
    assert thesis.read_text() == "mine"


def test_a_run_may_start_from_the_head_that_it_replaces(
    fedhead: Fedhead, experiment: Path, run: Path
) -> None:
    settings = ("--set", "train.rounds=1", "--set", "train.lr=0.000001")
    code, _, err = fedhead("run", experiment, "--overwrite", "--init-from", run, *settings)
    assert code == 0, err
    assert "10 of 10 classes" in err


def test_a_comparison_at_work_is_left_alone(
    fedhead: Fedhead, experiment: Path, tmp_path: Path
) -> None:
    cell = tmp_path / "grid" / "cells" / "begun"
    cell.mkdir(parents=True)
    with (tmp_path / "grid" / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        code, _, err = fedhead(
            "compare", experiment, "--strategies", "fedavg", "--seeds", "0", "--out", "grid"
        )
    assert code == 1
    assert "grid: fedhead compare runs already" in err
    assert cell.exists()


@pytest.mark.parametrize("command", ["report", "predict"])
def test_commands_that_read_find_what_a_killed_process_had_moved_aside(
    run: Path, fedhead: Fedhead, command: str
) -> None:
    run.rename(replaced_of(run))
    if command == "report":
        _, _, err = fedhead("report", run.parent, "--out", run.parent / "page")
    else:
        _, _, err = fedhead("predict", run, run / "none.png")
    assert "holds its former run again" in err
    assert (run / "run.json").exists()


def test_a_damaged_configuration_is_not_taken_for_a_typing_error(
    run: Path, fedhead: Fedhead
) -> None:
    file = run / "config.toml"
    file.write_bytes(file.read_bytes().replace(b"init-temperature", b"init-temperatura"))
    code, _, err = fedhead("resume", run)
    assert code == 1
    assert "it was changed since the run began" in err


@pytest.mark.parametrize("noise", ["secret", "seed"])
def test_what_a_private_run_has_spent_is_told_before_its_ledger_goes(
    experiment: Path, fedhead: Fedhead, noise: str
) -> None:
    keys = ("privacy.epsilon=8", f"privacy.noise={noise}", "train.clients-per-round=0",
            "train.rounds=1")  # fmt: skip
    settings = [word for key in keys for word in ("--set", key)]
    code, _, err = fedhead("run", experiment, *settings)
    assert (code, "has spent" in err) == (0, False)
    code, _, err = fedhead("run", experiment, *settings, "--overwrite")
    assert (code, "tiny has spent epsilon 8: what leaves" in err) == (0, noise == "secret")
