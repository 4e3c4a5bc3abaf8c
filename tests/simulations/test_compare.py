"""A comparison: its words, its cells, and that a killed one goes on to the same bytes."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from common.config import Config, changed, load_config, parse_overrides
from common.errors import ConfigError
from common.experiment import (
    calibration_positions,
    client_shares,
    experiment_dataset,
    held_out_positions,
)
from simulations.compare.cells import ComparisonSpec
from simulations.compare.parse import parse_comparison
from simulations.run import run_cell, run_in_process

ROOT = Path(__file__).parents[2]
# A strategy of a user's own, as docs/strategies.md shows it.
OWN = (ROOT / "docs/examples/strategy/signs.py").read_text()


@pytest.fixture
def base(tiny_toml: str, tmp_path: Path) -> Config:
    file = tmp_path / "tiny.toml"
    file.write_text(tiny_toml)
    return load_config(file, parse_overrides(["train.rounds=2"]))


def compared(base: Config, strategies: str = "fedavg", **words: object) -> ComparisonSpec:
    arguments = {"partitions": "", "seeds": "0", "sweeps": [], "validation_fraction": 0.2} | words
    return parse_comparison(base, strategies=strategies, **arguments)  # type: ignore[arg-type]


def cells(made: ComparisonSpec) -> list[Config]:
    return [
        made.cell(spec, partition, seed, settings).config
        for spec in made.strategies
        for partition in made.partitions
        for seed in made.seeds
        for settings in made.sweeps[spec.text]
    ]


def test_cells_share_data_and_backbone(base: Config) -> None:
    made = cells(compared(base, "fedavg,fed3r", seeds="1,2", partitions="iid,dirichlet:0.5"))
    assert len(made) == 8
    assert {config.seed for config in made} == {1, 2}
    assert {config.data_seed for config in made} == {base.seed}
    assert {(c.partition.scheme, c.partition.alpha) for c in made} == {
        ("iid", 1.0), ("dirichlet", 0.5)
    }  # fmt: skip


def test_variants_set_how_a_gradient_strategy_starts_and_steps(base: Config) -> None:
    plain, gram, start = cells(compared(base, "fedavg,fedavg+gram,scaffold+fed3r"))
    assert (plain.strategy.init, plain.strategy.precondition) == ("zeros", "none")
    assert gram.strategy.precondition == "gram"
    assert (start.strategy.name, start.strategy.init) == ("scaffold", "fed3r")


def test_a_sweep_reaches_those_that_have_the_setting(base: Config) -> None:
    sweeps = ["lr=0.1,0.2", "server-lr=1,2", "fedprox.mu=0.5,0.25", "fedprox.lr=0.3"]
    made = compared(base, "fedavg,fedprox,fed3r,norm_clipping", sweeps=sweeps)
    assert set(made.sweeps["fedavg"]) == {
        (f"train.lr={lr}", f"strategy.args.server-lr={server}")
        for lr in ("0.1", "0.2")
        for server in ("1", "2")
    }
    assert {row[0] for row in made.sweeps["fedprox"]} == {"train.lr=0.3"}  # its own wins
    assert len(made.sweeps["fedprox"]) == 4
    assert made.sweeps["fed3r"] == ((),)  # a closed form has no learning rate


def test_a_strategy_of_ones_own_is_swept_by_its_functions_name(
    base: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("mine_swept", "theirs_swept"):
        (tmp_path / f"{module}.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    for key in ("signs.step", "mine_swept:signs.step"):  # short, and in full
        made = compared(base, "fedavg,mine_swept:signs", sweeps=[f"{key}=0.01,0.1"])
        assert made.sweeps["fedavg"] == ((),)
        assert made.sweeps["mine_swept:signs"] == (
            ("strategy.args.step=0.01",), ("strategy.args.step=0.1",)
        )  # fmt: skip
    with pytest.raises(ConfigError, match="unknown key signs"):  # of which of the two?
        compared(base, "mine_swept:signs,theirs_swept:signs", sweeps=["signs.step=1"])


def test_a_partitions_text_is_its_value(base: Config) -> None:
    (config,) = cells(compared(base, partitions="natural:2024"))
    assert config.partition.column == "2024"


def test_settings_that_a_comparison_would_ignore_are_refused(
    fedhead: Callable[..., tuple[int, str, str]], tiny_toml: str, tmp_path: Path
) -> None:
    (tmp_path / "tiny.toml").write_text(tiny_toml)
    words = ("compare", "tiny.toml", "--strategies", "fedprox,fed3r")
    for options, message in (
        (
            ["--set", "strategy.name=fedprox"],
            "strategy.name would be ignored here: give --strategies",
        ),
        (["--set", "out=x"], "--set out would be ignored here: give --out instead"),
        (["--set", "partition.scheme=iid", "--partitions", "shard:2"], "give --partitions instead"),
        (["--set", "strategy.args.mu=1"], "--set strategy.args.* is for fedavg; --sweep STRATEGY"),
    ):
        code, _, err = fedhead(*words, *options)
        assert code == 1
        assert message in err


def test_the_experiments_own_arguments_stay_with_its_own_strategy(base: Config) -> None:
    own = parse_overrides(["strategy.name=fedprox", "strategy.args.mu=0.5"])
    prox, plain = cells(compared(changed(base, own), "fedprox,fedavg"))
    assert prox.strategy.args == {"mu": 0.5}
    assert plain.strategy.args == {}


def test_all_problems_of_the_words_are_told_at_once(base: Config) -> None:
    with pytest.raises(ConfigError) as caught:
        compared(
            base, "fedavgg,fedavg+x", partitions="iid:3,dirichlet:0.1", seeds="0,b",
            sweeps=["mu=", "tau=1"],
        )  # fmt: skip
    text = str(caught.value)
    for part in ("did you mean fedavg?", "+x is unknown", "iid takes no value", "--seeds '0,b'",
                 "'mu=' is not of the form", "tau: no strategy here has it"):  # fmt: skip
        assert part in text


def test_one_key_swept_twice_and_a_misspelt_strategy_are_told_once(base: Config) -> None:
    for sweeps, problem in (
        (["lr=0.1", "train.lr=0.3,1"], "--sweep lr and train.lr: the same key, give all values"),
        (["lr=0.1", "lr=1"], "--sweep lr: the same key, give all values"),
        (["trimed_mean.byzantine=0,0.1"], "unknown key trimed_mean, did you mean trimmed_mean?"),
    ):
        with pytest.raises(ConfigError) as caught:
            compared(base, "fedavg,trimmed_mean", sweeps=sweeps)
        (found,) = caught.value.problems
        assert problem in found


def test_a_value_out_of_range_is_told_before_anything_runs(base: Config) -> None:
    with pytest.raises(
        ConfigError, match=r"fedavg: train.lr=-1 must be .auto., or a number above 0"
    ):
        compared(base, sweeps=["lr=0.1,-1"])
    with pytest.raises(ConfigError, match=r"dirichlet:-1: partition.alpha=-1"):
        compared(base, partitions="iid,dirichlet:-1")
    with pytest.raises(ConfigError, match="fed3r: 1 problem|no gradients"):
        compared(base, "fed3r+gram")


def test_a_sweep_never_sees_the_test_set(base: Config) -> None:
    made = compared(base, seeds="3", sweeps=["lr=0.1,0.2"])
    swept = made.sweep_cell(made.strategies[0], made.partitions[0], ("train.lr=0.1",)).config
    plain = made.cell(made.strategies[0], made.partitions[0], 3, ("train.lr=0.1",)).config
    held_out, test = held_out_positions(swept), experiment_dataset(plain).test
    assert len(held_out) > 50
    assert not np.isin(held_out, test).any()
    assert not np.isin(held_out, calibration_positions(swept)).any()
    assert (calibration_positions(swept) == calibration_positions(plain)).all()
    for with_all, without in zip(client_shares(plain), client_shares(swept), strict=True):
        before = np.concatenate([with_all.train, with_all.test])
        after = np.concatenate([without.train, without.test])
        assert set(after) == set(before) - set(held_out)  # the same shares but for those


def test_a_cell_gives_the_head_of_a_plain_run(
    base: Config, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    made = compared(base, "scaffold", seeds="5")
    config = made.cell(made.strategies[0], made.partitions[0], 5, ()).config
    run_cell(tmp_path / "cell", config.to_toml())
    plain = run_in_process(
        tiny("train.rounds=2", "strategy.name=scaffold", "seed=5", "data.seed=0")
    )
    cell = json.loads((tmp_path / "cell" / "summary.json").read_text())
    assert cell["head_sha256"] == plain["head_sha256"]
    assert cell["accuracy"] == plain["accuracy"]
    assert not (tmp_path / "cell" / "model.pt").exists()


def test_a_closed_form_is_compared_beside_strategies_that_train_by_adam(base: Config) -> None:
    train = {"optimizer": "adam", "schedule": "cosine", "warmup-rounds": 1}
    trained, closed = cells(compared(changed(base, {"train": train}), "fedavg,fed3r"))
    assert (trained.train.optimizer, trained.train.schedule) == ("adam", "cosine")
    assert (closed.train.optimizer, closed.train.warmup_rounds) == ("sgd", 0)


def test_a_users_own_strategy_names_its_cell_by_its_source(
    base: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "signmodule.py").write_text(OWN)
    made = compared(base, "signmodule:signs", sweeps=["step=0.1,0.2"])
    spec = made.strategies[0]
    first = made.cell(spec, made.partitions[0], 0, ("strategy.args.step=0.1",))
    (tmp_path / "signmodule.py").write_text(OWN + "# another\n")
    assert made.cell(spec, made.partitions[0], 0, first.settings).key != first.key


def test_a_cell_says_where_a_module_in_the_working_folder_lies(
    base: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "signs_here.py").write_text(OWN)
    (config, *_) = cells(compared(base, "signs_here:signs"))
    assert config.strategy.root == str(tmp_path)


STEPS = """
from server.strategies.averaging import fedavg
from server.strategy import Positive

def slow(step: Positive = 0.5):
    \"\"\"FedAvg under another name.

    From nowhere, arXiv 1234.56789.
    \"\"\"
    return fedavg()
"""


def test_strategies_of_ones_own_are_found_beside_the_experiment_and_explained(
    fedhead: Callable[..., tuple[int, str, str]], tiny_toml: str, tmp_path: Path
) -> None:
    before, elsewhere = [*sys.path], tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "tiny.toml").write_text(tiny_toml)
    (elsewhere / "my_steps.py").write_text(STEPS)
    (tmp_path / "my_other_steps.py").write_text(STEPS)
    try:
        words = ("compare", "elsewhere/tiny.toml", "--strategies", "my_steps:slow", "--seeds", "0")
        code, _, err = fedhead(*words, "--sweep", "step=-1")
        assert (code, "my_steps:slow: strategy.args.step=-1 must be greater" in err) == (1, True)
        code, out, _ = fedhead("strategies", "my_other_steps:slow", "fedprox")
    finally:
        sys.path[:] = before
    assert code == 0
    assert out.startswith(
        "my_other_steps:slow(step=0.5)\n    FedAvg under another name. arXiv 1234.56789.\n"
        "    step: above 0\nfedprox(mu="
    )


def test_the_best_of_a_sweep_at_its_edge_is_said_in_plain_words(
    base: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import simulations.compare.compare as module

    caplog.set_level(logging.INFO, "fedhead")
    monkeypatch.setattr(module, "_run", lambda *_: [])
    monkeypatch.setattr(module, "_score", lambda path: (len(caplog.records) + 0.1, 0.0))
    made = compared(base, sweeps=["lr=0.1,0.01,0.003"])
    module._sweep(made, tmp_path, 1)
    line = "fedavg: best value lies at the sweep's edge: lr=0.1 (tried 0.003 to 0.1)"
    assert line in caplog.messages


def test_an_edge_that_goes_without_saying_is_not_said(
    base: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import simulations.compare.compare as module

    caplog.set_level(logging.INFO, "fedhead")
    monkeypatch.setattr(module, "_run", lambda *_: [])
    monkeypatch.setattr(module, "_score", lambda path: (0.5, 0.0))  # the first is the best
    for sweep in ("lr=0.1,0.01", "train.momentum=0,0.5,0.9", "trimmed_mean.byzantine=0,0.1,0.2",
                  "train.local-epochs=1,2,5"):  # fmt: skip
        module._sweep(compared(base, "fedavg,trimmed_mean", sweeps=[sweep]), tmp_path, 1)
    assert caplog.messages == []


def test_a_sweep_is_written_in_the_words_of_the_other_tables(
    base: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import simulations.compare.compare as module

    (tmp_path / "mine_written.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(module, "_run", lambda *_: [])
    made = compared(base, "mine_written:signs", sweeps=["lr=0.1", "signs.step=0.01,0.1"])
    module._sweep(made, tmp_path, 1)
    header, first, _ = (tmp_path / "sweep.csv").read_text().splitlines()
    assert header == "strategy,partition,hyperparameters,validation-accuracy,validation-loss,best"
    assert first == "signs,dirichlet:1,lr=0.1 step=0.01,failed,,true"


def command(folder: Path, out: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "fedhead", "compare", str(folder / "tiny.toml"),
        "--strategies", "fedavg,fedavg+fed3r,signmodule:signs", "--partitions", "iid,dirichlet:1.0",
        "--seeds", "0,1", "--sweep", "lr=0.01,0.05", "--out", str(out), "--jobs", "2", *more,
    ]  # fmt: skip


@pytest.mark.slow
def test_a_comparison_killed_in_the_middle_goes_on_to_the_same_table(
    base: Config, tmp_path: Path
) -> None:
    (tmp_path / "signmodule.py").write_text(OWN)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    running = subprocess.Popen(command(tmp_path, killed), env=environment)
    while len(list(killed.glob("cells/*/summary.json"))) < 3:  # the rest is still to come
        assert running.poll() is None
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.wait()
    kept = {path: path.stat().st_mtime_ns for path in killed.glob("*/*/summary.json")}
    assert 3 <= len(list(killed.glob("cells/*/summary.json"))) < 12
    for out in (killed, whole):
        subprocess.run(command(tmp_path, out), env=environment, check=True, timeout=200)
    assert len(list(killed.glob("cells/*/summary.json"))) == 12
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())  # not run again
    for name in ("leaderboard.csv", "sweep.csv", "leaderboard.md"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    assert len((whole / "leaderboard.csv").read_text().splitlines()) == 1 + 3 * 2
    assert (whole / "report.html").exists()
