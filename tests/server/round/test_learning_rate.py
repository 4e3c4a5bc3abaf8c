"""Runs that choose the clients' learning rate."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import server.round.learning_rate
from common.config import changed
from common.errors import DataError
from common.types import Affine, FeatureSet
from server.record.runfolder import RunFolder, read_config
from server.round.learning_rate import with_learning_rate
from simulations.resume import change_run
from simulations.run import open_run, read_summary, run_in_process

Make = Callable[..., Path]


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_chosen_rate_trains_as_the_same_number_would(quick: Make) -> None:
    chosen = run_in_process(quick("train.lr=auto", "train.rounds=2", name="auto"))
    given = run_in_process(quick(f"train.lr={chosen['lr']}", "train.rounds=2", name="given"))
    assert 0.01 < chosen["lr"] < 0.5
    assert chosen["head_sha256"] == given["head_sha256"]
    run = Path(chosen["run"])
    assert read_config(run).train.lr == "auto"
    assert {line["learning-rate"] for line in lines(run)} == {chosen["lr"]}


def test_a_run_goes_on_with_the_rate_that_it_began_with(
    quick: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = quick("train.lr=auto", "train.rounds=1")
    began = run_in_process(run)["lr"]
    monkeypatch.setattr(server.round.learning_rate, "automatic_rate", lambda *_, **__: 7.0)
    change_run(run, open_run(run), {"train": {"rounds": 2}})
    assert run_in_process(run)["lr"] == began
    assert [line["learning-rate"] for line in lines(run)] == [began, began]


def test_a_schedule_starts_from_the_chosen_rate(quick: Make) -> None:
    run = quick("train.lr=auto", "train.schedule=linear", "train.rounds=2")
    peak = run_in_process(run)["lr"]
    assert [line["learning-rate"] for line in lines(run)] == pytest.approx([peak, peak / 2])


def test_a_strategy_of_flowers_that_needs_the_rate_gets_the_chosen_one(quick: Make) -> None:
    name = "strategy.name=flwr.serverapp.strategy:QFedAvg"
    chosen = run_in_process(quick(name, "train.lr=auto", "train.rounds=1", name="auto"))
    given = run_in_process(quick(name, f"train.lr={chosen['lr']}", "train.rounds=1", name="given"))
    assert chosen["head_sha256"] == given["head_sha256"]


@pytest.fixture
def one_a_class(tmp_path: Path) -> str:
    """A source of four classes with one training image and one test image each."""
    for i, (part, name) in enumerate(itertools.product(("train", "test"), "abcd")):
        folder = tmp_path / "photos" / part / name
        folder.mkdir(parents=True)
        Image.fromarray(np.full((8, 8), 9 * i, np.uint8)).save(folder / "0.png")
    return f"data.source=folder:{tmp_path / 'photos'}"


def test_without_calibration_images_the_error_says_what_to_do(
    quick: Make, one_a_class: str, tmp_path: Path
) -> None:
    run = quick(one_a_class, "partition.num-clients=1", "train.clients-per-round=0")
    with pytest.raises(DataError, match="photos: no image to calibrate with: .* add images"):
        run_in_process(run)
    # A run that starts from another has a backbone, but no rate.
    config = changed(read_config(run), {"train": {"lr": "auto"}})
    x = np.zeros((8, 3), np.uint8)
    features = FeatureSet(
        x, np.zeros(8, np.int64), Affine(np.ones(3, np.float32), np.zeros(3, np.float32)), "f"
    )
    with pytest.raises(DataError, match="no image to calibrate with"):
        with_learning_rate(config, RunFolder(tmp_path / "other", config), features)


def test_a_closed_form_has_no_rate(quick: Make, caplog: pytest.LogCaptureFixture) -> None:
    run = quick("strategy.name=fed3r", "train.lr=auto", "train.rounds=1")
    assert run_in_process(run)["lr"] is None
    assert "train.lr" not in caplog.text
    assert read_summary(run)["lr"] is None
