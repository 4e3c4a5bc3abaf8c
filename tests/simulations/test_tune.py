"""A search for settings: what it may try, what it judges by, and that a cut changes nothing."""

from __future__ import annotations

import csv
import dataclasses
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

import fedhead as fedhead_api
import simulations.tune.study
from common.config import Config, changed, load_config, parse_overrides
from common.errors import ConfigError, MissingExtraError, RunError
from common.experiment import experiment_dataset, held_out_positions
from fedhead.cli.tune import _json, _print
from server.strategies import STRATEGIES, fedavg
from simulations.tune import Choices, Range, Trial, Tuned, default_space, read_space, tune
from simulations.tune.outcome import write_outcome
from simulations.tune.space import edges_of, own_values, with_values
from simulations.tune.study import _short

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
        "train.rounds": {"low": 1, "high": 9},
        "train.clients": {"choices": [[0], [1]]},
        "strategy.init-from": {"choices": ["a", "b"]},
        "train.warmup-rounds": {"low": 1, "high": 9, "step": 20},
        "train.decay-rounds": {"low": 1, "high": 9, "step": 0.5},
        "strategy": {"args": {"mu": {"low": 0.0, "high": 1.0}}},
        "backbone": {"arch": {"choices": ["mobilenet_v2"]}},
    }
    with pytest.raises(ConfigError) as caught:
        read_space(wrong, base, "space.toml")
    assert str(caught.value).startswith("space.toml: 16 problems: ")
    for words in (
        'train.lr=-1.0 must be "auto", or a number above 0',
        "unknown key train.learning",
        "train.momentum: expected {low=..., high=...",
        "train.batch-size: low=4 must be below high=4",
        "train.local-epochs=0.5",
        "train.weight-decay: log=true needs a low above 0",
        "data.source is part of the task",
        "seed is part of the task",
        "train.rounds is part of the task",
        "train.clients is part of the task",
        "strategy.init-from is part of the task",
        "train.warmup-rounds: step=20 leads beyond high=9 at once",
        "train.decay-rounds is a whole number: step=0.5 must be one, too",
        "strategy.args.mu: no strategy here has it (fedavg)",
        "backbone.arch: choices must be a list of two values or more",
    ):
        assert words in str(caught.value), words
    with pytest.raises(ConfigError, match="it is empty"):
        read_space({}, base)


def test_a_range_is_of_the_numbers_that_its_key_takes(base: Config) -> None:
    ends = {"low": 1, "high": 9}
    fedprox = changed(base, {"strategy": {"name": "fedprox"}})
    space = read_space(
        {
            "train": {"lr": {**ends, "step": 0.5}, "local-epochs": {**ends, "step": 3}},
            "train.clients-per-round": {"low": 2, "high": 8},
            "strategy.args.mu": {"low": 0, "high": 1},
            "strategy.args.server-lr": Range(1, 2),
        },
        fedprox,
    )
    assert {key: dimension.is_whole for key, dimension in space.items()} == {  # type: ignore[union-attr]
        "train.lr": False,
        "train.local-epochs": True,
        "train.clients-per-round": True,
        "strategy.args.mu": False,
        "strategy.args.server-lr": False,
    }
    assert space["train.local-epochs"] == Range(1, 7, step=3)  # where the steps end
    assert space["train.lr"] == Range(1.0, 9.0, step=0.5)


def test_an_argument_may_have_the_name_of_a_ranges_key(
    base: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stepping(step: float = 1.0, low: int = 3) -> object:
        return fedavg()

    monkeypatch.setitem(STRATEGIES, "stepping", stepping)
    config = changed(base, {"strategy": {"name": "stepping"}})
    ranges = {"step": {"low": 0.5, "high": 2.0}, "low": {"low": 1, "high": 5}}
    for content in ({"strategy": {"args": ranges}}, {"strategy.args": ranges}):
        assert read_space(content, config) == {
            "strategy.args.step": Range(0.5, 2.0),
            "strategy.args.low": Range(1, 5),
        }


def test_a_value_is_as_short_as_its_range_lets_it_be() -> None:
    assert _short(0.1015432, Range(0.0, 0.95)) == 0.1015
    assert _short(0.012723, Range(0.0005, 0.2, log=True)) == 0.01272
    narrow = Range(0.99991, 0.99999)
    assert {_short(value, narrow) for value in (0.999921234, 0.999931234)} == {
        0.99992123,
        0.99993123,
    }
    assert _short(0.0, Range(-1.0, 1.0)) == 0.0


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
        ("fedcof", ["gamma"]),
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


@pytest.mark.parametrize(
    ("strategy", "args", "ranges"),
    [
        ("fed3r", {}, {"lam": (1.0, 3000.0)}),
        ("ditto", {}, {"lam": (1.0, 3000.0), "personal-lam": (1.0, 3000.0)}),
        ("lda", {}, {"shrinkage": (0.001, 1.0)}),
        ("fed3r", {"lam": 100}, {"lam": (10.0, 1000.0)}),  # a whole number is one, too
        ("ditto", {"lam": 2.0}, {"lam": (0.2, 20.0), "personal-lam": (1.0, 3000.0)}),
    ],
)
def test_a_number_that_the_strategy_chooses_is_searched_as_well(
    base: Config, strategy: str, args: dict[str, object], ranges: dict[str, tuple[float, float]]
) -> None:
    config = changed(base, {"strategy": {"name": strategy, "args": args}})
    assert default_space(config) == {
        f"strategy.args.{name}": Range(*ends, log=True) for name, ends in ranges.items()
    }


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


def test_a_trial_in_which_a_users_code_fails_does_not_end_the_search(
    base: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def picky(server_lr: float = 0.0) -> object:
        plain = fedavg()

        def aggregate(*args: Any) -> Any:
            assert 1 / server_lr
            return plain.aggregate(*args)

        return dataclasses.replace(plain, name="picky", aggregate=aggregate)

    monkeypatch.setitem(STRATEGIES, "picky", picky)
    config = changed(base, {"strategy": {"name": "picky"}})
    space = {"strategy.args.server-lr": {"choices": [0.0, 1.0, 2.0]}}
    tuned = tune(config, space, tmp_path / "search", trials=3)
    assert (tuned.own.state, tuned.own.problem.split(":")[0]) == ("failed", "ZeroDivisionError")
    assert "settings: failed.\n" in tuned.file.read_text()


def test_a_trial_without_a_round_has_no_figures(
    base: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = Trial(0, {"train.lr": 0.01}, "failed", problem="no head")
    best = Trial(1, {"train.lr": 0.02}, "finished", 0.5, 1.0, 100, 2)
    tuned = write_outcome([failed, best], base, {"train.lr": Range(0.01, 0.1)}, tmp_path)
    assert tuned is not None
    shown = json.loads(json.dumps(_json(tuned), allow_nan=False))
    assert (shown["own"]["accuracy"], shown["own"]["loss"]) == (None, None)
    assert shown["best"]["accuracy"] == 0.5
    with (tmp_path / "trials.csv").open() as file:
        assert next(csv.DictReader(file))["loss"] == ""
    _print(tuned)
    assert "validation accuracy      failed  0.5000" in capsys.readouterr().out


def test_a_search_from_python_gives_settings_trials_and_a_file(
    base: Config, tmp_path: Path
) -> None:
    pandas = pytest.importorskip("pandas")
    tree = base.model_dump(by_alias=True)
    tuned = fedhead_api.tune(tree, space=SPACE, trials=2, out=tmp_path / "search")
    assert tuned.file == tmp_path / "search" / "best.toml"
    assert tuned.best in [trial.values for trial in tuned.found.trials]
    assert isinstance(tuned.table, pandas.DataFrame)
    assert [*tuned.table.index] == [0, 1]
    assert tuned.table["accuracy"].max() == tuned.accuracy
    assert set(tuned.table["train.lr"]) >= set(tuned.best.values())


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


def test_a_folder_may_have_any_name_and_a_damaged_study_is_refused_in_a_line(
    base: Config, tmp_path: Path
) -> None:
    folder = tmp_path / "a?b %20{c}"
    first = tune(base, SPACE, folder, trials=1)
    assert (folder / "study.db").is_file()
    assert told(tune(base, SPACE, folder, trials=1)) == told(first)  # read, not run again
    intact = (folder / "study.db").read_bytes()
    (folder / "study.db").write_text("no database")
    with pytest.raises(RunError, match=r"study\.db is damaged"):
        tune(base, SPACE, folder, trials=1)
    (folder / "study.db").unlink()
    with pytest.raises(RunError, match=r"study\.db is missing, though there are trials"):
        tune(base, SPACE, folder, trials=1)
    (folder / "study.db").write_bytes(intact)
    assert told(tune(base, SPACE, folder, trials=1)) == told(first)


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
