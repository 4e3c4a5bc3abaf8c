"""Codecs and projections in a comparison: side by side, where a strategy tolerates them."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.codecs import CODECS, NONE
from common.config import Config, load_config, parse_overrides
from common.errors import ConfigError
from simulations.compare import check
from simulations.compare.cells import Cell, ComparisonSpec
from simulations.compare.packing import Packing
from simulations.compare.parse import parse_comparison

pytestmark = pytest.mark.wide


@pytest.fixture
def base(tiny_toml: str, tmp_path: Path) -> Config:
    file = tmp_path / "tiny.toml"
    file.write_text(tiny_toml)
    return load_config(file, parse_overrides(["train.rounds=2"]))


@pytest.fixture(autouse=True)
def picky(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two codecs, of which a closed form tolerates one, and krum none."""
    refused = {("krum", "loud"), ("krum", "counts"), ("fed3r", "loud"), ("fedavg", "counts")}

    def check_strategy(config: Config) -> None:
        name, up = config.strategy.name, config.codec.up
        if (name, up) in refused:
            raise ConfigError([f"codec.up={up!r}: not with {name}"])

    for name in ("loud", "counts"):
        monkeypatch.setitem(CODECS, name, NONE)  # type: ignore[misc]
    monkeypatch.setattr(check, "_check_strategy", check_strategy)


def compared(base: Config, strategies: str = "fedavg", **words: object) -> ComparisonSpec:
    arguments = {"partitions": "", "seeds": "0", "sweeps": [], "validation_fraction": 0.2} | words
    return parse_comparison(base, strategies=strategies, **arguments)  # type: ignore[arg-type]


def cells(made: ComparisonSpec) -> list[Cell]:
    return [
        made.cell(spec, partition, made.seeds[0], (), packing)
        for partition in made.partitions
        for spec, packing in made.pairs
    ]


def test_each_codec_stands_beside_each_projection(base: Config) -> None:
    made = cells(compared(base, "fedavg", codecs="none,loud,none", projections="off,auto,008"))
    assert [(c.config.codec.up, c.config.backbone.projection) for c in made] == [
        ("none", "off"), ("none", "auto"), ("none", 8),
        ("loud", "off"), ("loud", "auto"), ("loud", 8),
    ]  # fmt: skip
    assert len({cell.key for cell in made}) == 6
    assert made[-1].key.startswith("fedavg,loud,8,seed-0-")


def test_without_them_cells_are_what_they_were(base: Config) -> None:
    (cell,) = cells(compared(base, partitions="iid"))
    assert cell.key.startswith("fedavg,iid,seed-0-")
    assert (cell.config.codec, cell.config.backbone) == (base.codec, base.backbone)
    (named,) = cells(compared(base, partitions="iid", codecs="none"))
    assert named.key != cell.key


def test_one_axis_alone_leaves_the_experiments_own_of_the_other(base: Config) -> None:
    own = base.model_copy(update={"codec": base.codec.model_copy(update={"up": "loud"})})
    (cell,) = cells(compared(own, "fedavg", projections="8"))
    assert (cell.config.codec.up, cell.config.backbone.projection) == ("loud", 8)


def test_what_a_strategy_does_not_tolerate_is_left_out_with_one_line_for_each_reason(
    base: Config,
) -> None:
    made = compared(base, "fedavg,fed3r,krum", codecs="none,loud,counts", projections="off,8")
    pairs = [(spec.text, packing.codec, packing.projection) for spec, packing in made.pairs]
    assert pairs == [
        ("fedavg", "none", "off"), ("fedavg", "none", "8"), ("fedavg", "loud", "off"),
        ("fedavg", "loud", "8"), ("fed3r", "none", "off"), ("fed3r", "none", "8"),
        ("fed3r", "counts", "off"), ("fed3r", "counts", "8"), ("krum", "none", "off"),
        ("krum", "none", "8"),
    ]  # fmt: skip
    assert made.notes == (
        "Left out: fedavg · counts: codec.up='counts': not with fedavg",
        "Left out: fed3r · loud: codec.up='loud': not with fed3r",
        "Left out: krum · loud: codec.up='loud': not with krum",
        "Left out: krum · counts: codec.up='counts': not with krum",
    )


def test_a_projection_that_is_left_out_alone_is_named(
    base: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check_strategy(config: Config) -> None:
        if config.backbone.projection == 8 and config.codec.up == "loud":
            raise ConfigError(["not both"])

    monkeypatch.setattr(check, "_check_strategy", check_strategy)
    made = compared(base, codecs="none,loud", projections="off,8")
    assert made.notes == ("Left out: fedavg · loud · 8: not both",)
    assert len(made.pairs) == 3


def test_a_strategy_that_nothing_is_left_for_is_a_problem_beside_the_others(base: Config) -> None:
    with pytest.raises(ConfigError) as caught:
        compared(base, "fedavg,krum", codecs="loud,counts", projections="off,8")
    assert tuple(caught.value.problems) == (
        "krum: codec.up='loud': not with krum", "krum: codec.up='counts': not with krum"
    )  # fmt: skip


def test_a_setting_out_of_range_is_no_reason_to_leave_a_codec_out(base: Config) -> None:
    with pytest.raises(ConfigError, match="fedavg: train.lr=-1 must be"):
        compared(base, "fedavg,fed3r", codecs="none,loud", sweeps=["lr=0.1,-1"])


def test_a_number_that_python_does_not_read_is_no_number_of_directions(base: Config) -> None:
    with pytest.raises(ConfigError, match="backbone.projection"):
        compared(base, projections="9" * 5000)


def test_unknown_codecs_and_projections_are_told_with_all_other_problems(base: Config) -> None:
    with pytest.raises(ConfigError) as caught:
        compared(base, "fedavgg", codecs="none,luod", projections="off,0,of", seeds="x")
    text = str(caught.value)
    for part in ("did you mean fedavg?", "--codecs: unknown codec 'luod', did you mean loud?",
                 "backbone.projection=0", "backbone.projection='of'", "--seeds 'x'"):  # fmt: skip
        assert part in text


@pytest.mark.parametrize(
    ("axis", "sweep"),
    [
        ({"codecs": "none,loud"}, "codec.up=none,loud"),
        ({"projections": "off,8"}, "backbone.projection=off,8"),
    ],
)
def test_what_is_compared_is_not_swept(base: Config, axis: dict[str, str], sweep: str) -> None:
    with pytest.raises(ConfigError, match="its values are compared, so that none"):
        compared(base, **axis, sweeps=[sweep])
    assert compared(base, sweeps=[sweep]).pairs  # without the axis it is a setting like others


def test_each_packing_has_its_own_best_settings(
    base: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import simulations.compare.compare as module

    def score(path: Path) -> tuple[float, float]:
        """With the codec the smaller rate is better, without it the larger one."""
        rate = config_of[path.name].train.lr
        assert isinstance(rate, float)
        return (rate if config_of[path.name].codec.up == "none" else 1 - rate), 0.0

    made = compared(base, codecs="none,loud", sweeps=["lr=0.1,0.2"])
    swept = [
        made.sweep_cell(spec, made.partitions[0], settings, packing)
        for spec, packing in made.pairs
        for settings in made.sweeps[spec.text]
    ]
    config_of = {cell.key: cell.config for cell in swept}
    monkeypatch.setattr(module, "_run", lambda *_: [])
    monkeypatch.setattr(module, "_score", score)
    best = module._sweep(made, tmp_path, 1)
    assert best == {
        ("fedavg", "", Packing("none")): ("train.lr=0.2",),
        ("fedavg", "", Packing("loud")): ("train.lr=0.1",),
    }
    header, *rows = (tmp_path / "sweep.csv").read_text().splitlines()
    assert header.startswith("strategy,codec,projection,partition,hyperparameters,")
    assert [row.split(",")[1:3] for row in rows] == [["none", "off"]] * 2 + [["loud", "off"]] * 2


def test_cells_of_one_backbone_run_one_after_the_other(
    base: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import simulations.compare.compare as module

    ran: list[str] = []

    def run_cells(todo: list[Cell], *_: object) -> list[tuple[Cell, str]]:
        ran.extend(cell.packing.projection for cell in todo)
        return [(cell, "") for cell in todo]

    monkeypatch.setattr(module, "run_cells", run_cells)
    monkeypatch.setattr(module, "_warm", lambda _: None)
    made = compared(base, "fedavg,fed3r", seeds="0,1", projections="off,8")
    chosen = module.run_comparison(made, tmp_path, jobs=1)
    assert ran == ["off"] * 4 + ["8"] * 4
    # The tables keep the order of the command line.
    names = [path.name.split(",seed")[0] for path in chosen.runs[:4]]
    assert names == ["fedavg,off", "fedavg,8", "fed3r,off", "fed3r,8"]


def test_each_projection_is_prepared_once(base: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    import common.experiment
    import server.export.run_model
    import simulations.compare.compare as module

    prepared: list[object] = []
    monkeypatch.setattr(common.experiment, "experiment_dataset", lambda _: None)
    monkeypatch.setattr(common.experiment, "experiment_features", lambda *_: None)
    monkeypatch.setattr(
        server.export.run_model, "prepare", lambda c, _: prepared.append(c.backbone.projection)
    )
    module._warm(compared(base, codecs="none,loud", projections="off,8"))
    assert prepared == ["off", 8]


def test_a_cell_that_failed_is_named_with_its_codec_and_projection(base: Config) -> None:
    from simulations.compare.compare import Chosen

    (cell,) = cells(compared(base, partitions="iid", codecs="loud", projections="8"))
    assert Chosen((), ((cell, "no room"),)).notes == (
        "Could not run: fedavg · loud · 8, iid, seed 0: no room",
    )
