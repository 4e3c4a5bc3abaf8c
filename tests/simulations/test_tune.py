"""A search for settings: what it may try, what it judges by, and that a cut changes nothing."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import simulations.tune.study
from common.config import Config, changed, load_config, parse_overrides
from common.errors import ConfigError, MissingExtraError, RunError
from common.experiment import experiment_dataset, held_out_positions
from simulations.tune import Choices, Range, Trial, Tuned, default_space, read_space, tune
from simulations.tune.space import edges_of, own_values, with_values

pytest.importorskip("optuna", reason="pip install 'fedhead[tune]'")

ROOT = Path(__file__).parents[2]
SPACE = {"train": {"lr": {"low": 0.001, "high": 0.1, "log": True}}}


@pytest.fixture
def base(tiny_toml: str, tmp_path: Path) -> Config:
    file = tmp_path / "tiny.toml"
    file.write_text(tiny_toml)
    return load_config(file, parse_overrides(["train.rounds=2"]))


def told(tuned: Tuned) -> list[tuple[object, ...]]:
    """All that must not depend on how often a search was cut off."""
    return [(t.number, t.values, t.state, t.accuracy, t.loss, t.rounds) for t in tuned.trials]


def test_all_problems_of_a_space_are_reported_at_once(base: Config) -> None:
    wrong = {
        "train": {
            "lr": {"low": -1.0, "high": 1.0},
            "learning": {"choices": [1, 2]},
            "momentum": 0.9,
            "batch-size": {"low": 4, "high": 4},
            "local-epochs": {"low": 0.5, "high": 2.5},
            "weight-decay": {"low": 0, "high": 1, "log": True},
        },
        "data.source": {"choices": ["digits", "mnist5k"]},
        "seed": {"low": 0, "high": 9},
        "strategy": {"args": {"mu": {"low": 0.0, "high": 1.0}}},
        "backbone": {"arch": {"choices": ["mobilenet_v2"]}},
    }
    with pytest.raises(ConfigError) as caught:
        read_space(wrong, base, "space.toml")
    assert str(caught.value).startswith("space.toml: 11 problems: ")
    for words in (
        "train.lr=-1.0 must be greater than 0",
        "unknown key train.learning",
        "train.momentum: expected {low=..., high=...",
        "train.batch-size: low=4 must be below high=4",
        "train.local-epochs=0.5",
        "train.weight-decay: log=true needs a low above 0",
        "data.source is part of the task",
        "seed is part of the task",
        "strategy.args.mu: no strategy here has it (fedavg)",
        "backbone.arch: choices must be a list of two values or more",
    ):
        assert words in str(caught.value), words
    with pytest.raises(ConfigError, match="it is empty"):
        read_space({}, base)


def test_an_argument_is_tried_with_the_strategies_that_have_it(base: Config) -> None:
    space = read_space(
        {
            "strategy.args.mu": {"low": 0.001, "high": 1.0, "log": True},
            "strategy.name": {"choices": ["fedavg", "fedprox"]},
        },
        base,
    )
    assert [*space] == ["strategy.name", "strategy.args.mu"]  # the name comes first
    assert own_values(base, space) == {"strategy.name": "fedavg"}
    fedprox = changed(base, {"strategy": {"name": "fedprox"}})
    assert own_values(fedprox, space) == {"strategy.name": "fedprox", "strategy.args.mu": 0.01}
    own = changed(base, {"strategy": {"args": {"server-lr": 2.0}}})
    other = with_values(own, {"strategy.name": "fedprox", "strategy.args.mu": 0.5})
    assert other.strategy.args == {"mu": 0.5}  # the experiment's own are of its own strategy
    with pytest.raises(ConfigError, match=r"strategy.args.mu=-1.0 must be"):
        read_space(
            {"strategy.args.mu": {"low": -1.0, "high": 1.0},
             "strategy.name": {"choices": ["fedavg", "fedprox"]}},
            base,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("strategy", "keys"),
    [
        ("fedavg", ["lr", "local-epochs", "batch-size", "momentum", "server-lr"]),
        ("scaffold", ["lr", "local-epochs", "batch-size", "server-lr"]),  # needs plain SGD
        ("fedadam", ["lr", "local-epochs", "batch-size", "momentum", "server-lr", "tau"]),
        ("fed3r", ["lam"]),
    ],
)
def test_what_is_searched_where_nothing_is_said(
    base: Config, strategy: str, keys: list[str]
) -> None:
    config = changed(base, {"strategy": {"name": strategy}})
    space = default_space(config)
    assert [key.rpartition(".")[2] for key in space] == keys
    assert own_values(config, space) is not None
    for i in (0, -1):  # every corner is an experiment
        with_values(config, {key: dimension.samples[i] for key, dimension in space.items()})


def test_an_end_counts_only_where_there_is_something_beyond(base: Config) -> None:
    space = {
        "train.lr": Range(0.01, 1.0, log=True),
        "train.momentum": Range(0.0, 0.95),
        "train.local-epochs": Range(1, 9, step=2),
        "train.batch-size": Choices((5, 10, 20)),
    }
    ends = {"train.lr": 0.99, "train.momentum": 0.0, "train.local-epochs": 1, "train.batch-size": 5}
    assert edges_of(ends, base, space) == {"train.lr": 1.0, "train.batch-size": 5}
    within = {"train.lr": 0.1, "train.local-epochs": 9, "train.batch-size": 10}
    assert edges_of(within, base, space) == {"train.local-epochs": 9}


def test_a_search_starts_from_the_experiment_and_writes_the_best(
    base: Config, tmp_path: Path
) -> None:
    seen: list[Trial] = []
    base = changed(base, {"data": {"validation-fraction": 0.1}, "tracking": {"trackers": []}})
    tuned = tune(base, SPACE, tmp_path / "search", trials=4, on_trial=seen.append)
    assert [*tuned.trials] == seen
    assert tuned.own.values == {"train.lr": 0.01}
    assert tuned.best.accuracy >= tuned.own.accuracy
    assert tuned.best in tuned.trials
    written = load_config(tuned.file)
    assert written == with_values(base, tuned.best.values)
    assert written.data.validation_fraction == 0.1  # as it was
    judged = changed(base, {"data": {"validation-fraction": 0.2}})
    held_out = held_out_positions(judged)
    assert tuned.best.examples == len(held_out)
    assert not {*held_out} & {*experiment_dataset(base).test}
    with (tmp_path / "search" / "trials.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert [float(row["train.lr"]) for row in rows] == [t.values["train.lr"] for t in tuned.trials]
    assert not [*(tmp_path / "search").rglob("tensorboard")]


def test_an_experiment_beyond_the_space_is_still_the_first_trial(
    base: Config, tmp_path: Path
) -> None:
    space = {"train": {"lr": {"low": 0.1, "high": 0.2}}}
    tuned = tune(base, space, tmp_path / "search", trials=2)
    assert tuned.own.values == {}
    assert 0.1 <= tuned.trials[1].values["train.lr"] <= 0.2


def test_a_search_that_was_cut_off_tries_the_same(
    base: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import optuna

    whole = tune(base, SPACE, tmp_path / "whole", trials=5)
    run_cell = simulations.tune.study.run_cell
    started = []

    def cut(path: Path, toml: str, **kwargs: Any) -> None:
        started.append(path)
        if len(started) == 3:
            raise KeyboardInterrupt
        run_cell(path, toml, **kwargs)

    monkeypatch.setattr(simulations.tune.study, "run_cell", cut)
    with pytest.raises(KeyboardInterrupt):
        tune(base, SPACE, tmp_path / "cut", trials=5)
    goes_on = tune(base, SPACE, tmp_path / "cut", trials=5)
    assert told(goes_on) == told(whole)
    assert len(started) == 6  # no trial that had ended ran again
    assert goes_on.file.read_text() == whole.file.read_text()
    study = optuna.load_study(
        study_name="fedhead", storage=f"sqlite:///{tmp_path / 'cut' / 'study.db'}"
    )
    assert not study.get_trials(states=(optuna.trial.TrialState.RUNNING,))


def test_what_does_worse_ends_early(
    base: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulations.tune.study, "_RANDOM", 1)
    space = {"train": {"lr": {"choices": [0.01, 1e-9, 2e-9, 3e-9]}}}
    tuned = tune(changed(base, {"train": {"rounds": 6}}), space, tmp_path / "search", trials=5)
    pruned = [trial for trial in tuned.trials if trial.state == "pruned"]
    assert pruned
    for trial in pruned:
        assert trial.rounds < 6
        assert trial.values["train.lr"] < 0.01
    assert tuned.best.values == {"train.lr": 0.01}


def test_a_trial_that_gives_no_head_is_one_that_failed(base: Config, tmp_path: Path) -> None:
    space = {"train": {"lr": {"choices": [0.01, 1e30, 2e30]}}}
    tuned = tune(base, space, tmp_path / "search", trials=4)
    failed = [trial for trial in tuned.trials if trial.state == "failed"]
    assert failed
    assert all("no round of 2 gave a new head" in trial.problem for trial in failed)


def test_another_search_is_refused_in_its_folder(base: Config, tmp_path: Path) -> None:
    folder = tmp_path / "search"
    tune(base, SPACE, folder, trials=1)
    with pytest.raises(RunError, match="another experiment, choose another folder"):
        tune(changed(base, {"seed": 1}), SPACE, folder, trials=1)
    with pytest.raises(RunError, match="another space"):
        tune(base, {"train": {"lr": {"low": 0.1, "high": 1.0}}}, folder, trials=1)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(RunError, match="not empty and holds no search"):
        tune(base, SPACE, tmp_path / "photos", trials=1)


def test_without_optuna_the_command_that_installs_it_is_said(
    base: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulations.tune.search.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fedhead\[tune\]'"):
        tune(base, SPACE, tmp_path / "search")
    assert not (tmp_path / "search").exists()


OPTIONS = ("--set", "train.rounds=2")


def test_the_command_ends_with_the_first_and_the_best_settings(
    fedhead: Callable[..., tuple[int, str, str]], tiny_toml: str, tmp_path: Path
) -> None:
    (tmp_path / "tiny.toml").write_text(tiny_toml)
    (tmp_path / "space.toml").write_text("[train]\nlr = { low = 1e-4, high = 0.01, log = true }\n")
    command = ("tune", "tiny.toml", "--space", "space.toml", "--trials", 3, *OPTIONS)
    code, out, _ = fedhead(*command)
    assert code == 0
    for words in ("validation accuracy", "train.lr", "3 trials: ", "next: fedhead run runs/tiny-"):
        assert words in out
    assert all(len(line) <= 80 for line in out.splitlines())
    code, out, _ = fedhead(*command, "--json")  # nothing is left to run
    assert code == 0
    assert json.loads(out)["trials"] == 3
    code, _, err = fedhead(*command, "--set", "out=x")
    assert (code, "give --out instead" in err) == (1, True)


@pytest.mark.slow
def test_a_search_that_was_killed_goes_on_to_the_same_file(tiny_toml: str, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(tiny_toml)
    environment: Mapping[str, str] = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start(name: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "fedhead", "tune", "tiny.toml", "--trials", "6",
                   "--out", name, *OPTIONS]  # fmt: skip
        return subprocess.Popen(command, cwd=tmp_path, env=environment)

    assert start("whole").wait() == 0
    killed = start("killed")
    while not (tmp_path / "killed" / "trials" / "002" / "metrics.jsonl").exists():
        assert killed.poll() is None
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert start("killed").wait() == 0
    whole, other = ((tmp_path / run / "best.toml").read_bytes() for run in ("whole", "killed"))
    assert whole == other
