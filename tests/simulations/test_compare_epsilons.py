"""Privacy budgets in a comparison: what a budget sets, and what it leaves as it was."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from common.config import Config, load_config, parse_overrides
from common.errors import ConfigError
from common.toml_model import read_toml
from simulations.compare import check
from simulations.compare.cells import Cell, ComparisonSpec
from simulations.compare.packing import known_epsilon, meant_for_privacy
from simulations.compare.parse import parse_comparison

_TRAINED = (
    'name = "tiny"\n[data]\nsource = "mnist5k"\n[partition]\nnum-clients = 20\n'
    "test-fraction = 0.25\n[train]\nrounds = 7\nclients-per-round = 5\nlr = 0.5\nlocal-epochs = 3\n"
)


@pytest.fixture(autouse=True)
def picky(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scaffold cannot be private, whatever else is compared."""

    def check_strategy(config: Config) -> None:
        if config.strategy.name == "scaffold" and config.privacy.active:
            raise ConfigError(["strategy.name: scaffold keeps something of each client"])

    monkeypatch.setattr(check, "_check_strategy", check_strategy)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(_TRAINED)
    return path


def compared(file: Path, strategies: str, *items: str, **words: object) -> ComparisonSpec:
    """As ``fedhead compare FILE --set ITEM`` reads it."""
    without = {"privacy": {"epsilon": math.inf}} if words.get("epsilons") else {}
    base = load_config(file, without, items)
    arguments = {"partitions": "", "seeds": "0", "sweeps": [], "validation_fraction": 0.2} | words
    given = meant_for_privacy(read_toml(file), parse_overrides(items))
    return parse_comparison(base, strategies=strategies, given=given, **arguments)  # type: ignore[arg-type]


def cells(made: ComparisonSpec) -> dict[str, Cell]:
    (partition,) = made.partitions
    return {
        " · ".join((spec.text, *packing.words)): made.cell(spec, partition, 0, (), packing)
        for spec, packing in made.pairs
    }


def ruled(config: Config) -> tuple[object, ...]:
    train = config.train
    return (
        train.rounds, train.clients_per_round, train.local_epochs, train.batch_size, train.lr,
        config.backbone.projection, config.partition.test_fraction,
    )  # fmt: skip


BY_RULE = (10, 0, 1, 0, "auto", "auto", 0.0)
AS_WRITTEN = (7, 5, 3, 10, 0.5, "off", 0.25)


def test_a_budget_has_the_rules_keys_and_without_one_the_file_has_its_own(file: Path) -> None:
    made = cells(compared(file, "fedavg", epsilons="1,4.0,inf,4"))
    assert list(made) == ["fedavg · epsilon 1", "fedavg · epsilon 4", "fedavg · epsilon inf"]
    one, four, without = (cell.config for cell in made.values())
    assert [config.privacy.epsilon for config in (one, four, without)] == [1, 4, math.inf]
    assert ruled(one) == ruled(four) == BY_RULE
    assert ruled(without) == AS_WRITTEN
    assert len({cell.key for cell in made.values()}) == 3
    assert made["fedavg · epsilon 4"].key.startswith("fedavg,epsilon-4,seed-0-")


def test_what_is_set_for_the_comparison_is_not_the_rules(file: Path) -> None:
    made = cells(compared(file, "fedavg", "train.rounds=4", "train.lr=0.25", epsilons="4,inf"))
    private, without = (cell.config for cell in made.values())
    assert ruled(private) == (4, 0, 1, 0, 0.25, "auto", 0.0)
    assert ruled(without) == (4, 5, 3, 10, 0.25, "off", 0.25)


def test_a_projection_that_is_compared_is_not_the_rules(file: Path) -> None:
    made = cells(compared(file, "fedavg", epsilons="4,inf", projections="off,8"))
    found = [(c.config.backbone.projection, c.config.privacy.epsilon) for c in made.values()]
    assert found == [("off", 4), ("off", math.inf), (8, 4), (8, math.inf)]


def test_a_private_files_own_keys_are_meant_for_privacy(file: Path) -> None:
    file.write_text(_TRAINED + "[privacy]\nepsilon = 8.0\ndelta = 1e-6\n")
    made = cells(compared(file, "fedavg", epsilons="4,inf"))
    private, without = (cell.config for cell in made.values())
    # Batches and projection, of which the file says nothing, are the rule's with a budget alone.
    assert ruled(private) == (7, 5, 3, 0, 0.5, "auto", 0.25)
    assert ruled(without) == AS_WRITTEN
    assert private.privacy.delta == 1e-6


def test_a_closed_form_releases_once_and_others_many_times(file: Path) -> None:
    made = cells(compared(file, "fed3r,fedavg", epsilons="4,inf"))
    found = {
        name: (cell.config.privacy.mechanism, cell.config.train.rounds)
        for name, cell in made.items()
    }
    assert found == {
        "fed3r · epsilon 4": ("one-shot", 1), "fed3r · epsilon inf": ("everyone", 7),
        "fedavg · epsilon 4": ("everyone", 10), "fedavg · epsilon inf": ("everyone", 7),
    }  # fmt: skip
    (given,) = cells(compared(file, "fed3r", "train.rounds=3", epsilons="4")).values()
    assert given.config.train.rounds == 1  # three are for strategies that take steps
    closed = made["fed3r · epsilon 4"].config.train
    assert (closed.clients_per_round, closed.batch_size) == (0, 10)  # nobody takes steps


def test_without_the_option_a_private_experiment_suits_either_kind(file: Path) -> None:
    private = 'name = "p"\n[privacy]\nepsilon = 2.0\n'
    file.write_text(private)
    made = cells(compared(file, "fed3r,fedavg"))
    assert {name: cell.config.privacy.mechanism for name, cell in made.items()} == {
        "fed3r": "one-shot", "fedavg": "everyone"
    }  # fmt: skip
    file.write_text(f'{private}mechanism = "one-shot"\n')
    made = cells(compared(file, "fed3r,fedavg"))
    assert [cell.config.privacy.mechanism for cell in made.values()] == ["one-shot", "everyone"]
    assert [cell.config.train.rounds for cell in made.values()] == [1, 10]


def test_cohorts_of_a_mechanism_that_has_them_stay(file: Path) -> None:
    file.write_text(f'{_TRAINED}[privacy]\nmechanism = "poisson"\n')
    (cell,) = cells(compared(file, "fedavg", epsilons="4")).values()
    assert ruled(cell.config) == (50, 5, 1, 0, "auto", "auto", 0.0)


def test_a_strategy_that_cannot_be_private_is_named_before_anything_runs(file: Path) -> None:
    made = compared(file, "fedavg,scaffold", epsilons="1,4,inf")
    assert "scaffold · epsilon inf" in cells(made)
    (note,) = made.notes
    assert note == (
        "Left out: scaffold · epsilon 1, scaffold · epsilon 4: strategy.name: scaffold keeps "
        "something of each client"
    )
    with pytest.raises(ConfigError, match="scaffold: strategy.name: scaffold keeps something"):
        compared(file, "fedavg,scaffold", epsilons="1,4")


@pytest.mark.parametrize("text", ["0", "-1", "nan", "four", "1e-400"])
def test_what_is_no_budget_is_told_with_all_other_problems(file: Path, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compared(file, "fedavgg", epsilons=f"1,{text}")
    assert f"--epsilons '{text}' must be a number above 0, or inf" in str(caught.value)
    assert "did you mean fedavg?" in str(caught.value)


def test_a_budget_is_written_with_all_its_digits() -> None:
    assert [known_epsilon(t) for t in ("0.1234567", "1e1", "inf", "08")] == [
        "0.1234567", "10", "inf", "8"
    ]  # fmt: skip


def test_a_budget_that_is_compared_is_not_swept(file: Path) -> None:
    with pytest.raises(ConfigError, match="--sweep privacy.epsilon: its values are compared"):
        compared(file, "fedavg", epsilons="1,4", sweeps=["privacy.epsilon=1,2"])


def test_each_budgets_features_are_made_once_and_its_cells_run_together(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import common.experiment
    import server.export.run_model
    import simulations.compare.compare as module

    prepared: list[Config] = []
    ran: list[tuple[str, str]] = []

    def run_cells(todo: list[Cell], *_: object) -> list[tuple[Cell, str]]:
        ran.extend((cell.packing.projection, cell.packing.epsilon) for cell in todo)
        return [(cell, "") for cell in todo]

    monkeypatch.setattr(common.experiment, "experiment_dataset", lambda _: None)
    monkeypatch.setattr(common.experiment, "experiment_features", lambda *_: None)
    monkeypatch.setattr(server.export.run_model, "prepare", lambda c, _: prepared.append(c))
    monkeypatch.setattr(module, "run_cells", run_cells)
    made = compared(file, "fedavg,fed3r", epsilons="1,inf")
    module.run_comparison(made, tmp_path / "out", jobs=1)
    assert [(c.privacy.epsilon, c.backbone.projection) for c in prepared] == [
        (1.0, "auto"), (math.inf, "off")
    ]  # fmt: skip
    assert ran == [("", "1")] * 2 + [("", "inf")] * 2
