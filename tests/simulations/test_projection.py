"""Whole runs whose clients see projected features."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from common.backbone.frozen import FrozenBackbone
from common.errors import BackboneError, ConfigError
from server.export.card import read_card
from simulations.run import export_run, open_run, read_summary, run_in_process

pytestmark = pytest.mark.wide

Make = Callable[..., Path]
CutAfter = Callable[[int], AbstractContextManager[None]]


def metrics(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold"])
def test_a_run_that_was_cut_off_ends_with_the_same_bytes(
    quick: Make, cut_after: CutAfter, strategy: str
) -> None:
    options = (f"strategy.name={strategy}", "train.rounds=4", "backbone.projection=30")
    whole = run_in_process(quick(*options, name="whole"))
    run = quick(*options)
    with cut_after(2), pytest.raises(KeyboardInterrupt):
        run_in_process(run)
    again = run_in_process(run)
    assert again["head_sha256"] == whole["head_sha256"]
    assert again["downlink_bytes"] == whole["downlink_bytes"]
    assert again["fingerprint"] == whole["fingerprint"]


def test_the_projection_counts_once_for_each_client_that_is_asked(quick: Make) -> None:
    # All 8 clients in the first round, and again in the second.
    options = ("train.rounds=2", "train.clients-per-round=0")
    plain = quick(*options, name="plain")
    run_in_process(plain)
    run = quick(*options, "backbone.projection=30", name="projected")
    summary = run_in_process(run)
    backbone = FrozenBackbone.load(run)
    assert backbone.projection is not None
    first, second = (int(str(line["downlink-bytes"])) for line in metrics(run))
    assert first - second == 8 * backbone.projection.payload_bytes
    assert summary["downlink_bytes"] == first + second
    # A head of 30 directions is that much smaller than one of all features.
    ups = [[line["uplink-bytes"] for line in metrics(path)] for path in (plain, run)]
    assert ups[1][0] < ups[0][0] / 10  # type: ignore[operator]
    assert read_summary(run)["accuracy"] > 0.5


def test_it_is_exported_as_if_there_were_no_projection(tiny: Make, tmp_path: Path) -> None:
    options = ("strategy.name=fed3r", "train.rounds=1", "train.clients-per-round=0")
    run = tiny(*options, "backbone.projection=60")
    summary = run_in_process(run)
    card = read_card(run / "model.pt")
    backbone = FrozenBackbone.load(run)
    assert card.fingerprint == backbone.base.fingerprint
    assert card.num_features == 672
    assert summary["fingerprint"] == backbone.fingerprint
    assert abs(summary["model_accuracy"] - summary["accuracy"]) < 0.02
    assert summary["argmax_agreement"] > 0.97
    # The same file comes of the run folder alone.
    before = (run / "model.pt").read_bytes()
    export_run(run, ["model"], tmp_path / "again.pt")
    assert (tmp_path / "again.pt").read_bytes() == before
    plain = run_in_process(tiny(*options, name="plain"))
    assert plain["fingerprint"] == backbone.base.fingerprint
    assert abs(plain["model_bytes"] - summary["model_bytes"]) < 2000


def test_more_directions_than_features_end_the_run_with_a_clear_line(quick: Make) -> None:
    with pytest.raises(BackboneError, match="673 directions, but there are only 672 features"):
        run_in_process(quick("backbone.projection=673"))


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "true", '"all"'])
def test_what_is_no_number_of_directions_is_refused(quick: Make, value: str) -> None:
    with pytest.raises(ConfigError, match='projection.*must be "off", "auto" or a whole number'):
        quick(f"backbone.projection={value}")


def test_a_value_survives_in_the_runs_own_file(quick: Make) -> None:
    for value in ("off", "auto", 30):
        run = quick(f"backbone.projection={value}", name=f"run-{value}")
        assert open_run(run).backbone.projection == value
