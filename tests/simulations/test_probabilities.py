"""The temperature of a run: told, in the files, and the same for a later export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from common.config import parse_overrides
from server.export.card import read_card
from server.export.exported import exported
from server.export.exporters import FILES
from server.export.other_runtime import is_installed
from server.export.predict import classify
from simulations.resume import change_run
from simulations.run import export_run, open_run, run_in_process, trained_run

Make = Callable[..., Path]

pytestmark = pytest.mark.slow

ONCE = ("strategy.name=fed3r", "train.rounds=1", "train.clients-per-round=0")


def test_a_later_export_and_a_longer_run_have_the_temperature_of_their_head(tiny: Make) -> None:
    run = tiny("train.rounds=2")
    told = run_in_process(run)
    assert told["calibration"]["fitted_examples"] >= 50
    card = read_card(run / "model.pt")
    assert card.temperature == told["temperature"] != 1
    assert card.calibration.model_dump() == told["calibration"]
    first = (run / "model.pt").read_bytes()
    (run / "model.pt").unlink()
    export_run(run, ["model"], None)
    assert (run / "model.pt").read_bytes() == first
    change_run(run, open_run(run), parse_overrides(["train.rounds=4"]))
    longer = run_in_process(run)
    assert longer["temperature"] != told["temperature"]
    assert read_card(run / "model.pt").temperature == longer["temperature"]
    whole = tiny("train.rounds=4", name="whole")
    assert run_in_process(whole)["calibration"] == longer["calibration"]


def test_probabilities_of_a_closed_form_are_better_than_those_of_its_bare_logits(
    tiny: Make,
) -> None:
    summary = run_in_process(tiny(*ONCE))
    assert summary["temperature"] < 0.5  # ridge regression's logits lie between 0 and 1
    assert summary["ece"] < 0.1 < summary["ece_before"]
    assert summary["calibrated_loss"] < summary["loss"]


@pytest.mark.parametrize("target", ["onnx", "executorch"])
def test_files_of_other_runtimes_have_the_temperature_too(
    tiny: Make, tmp_path: Path, target: str
) -> None:
    if not is_installed(target):
        pytest.skip(f"pip install 'fedhead[{target}]'")
    run = tiny(*ONCE)
    run_in_process(run)
    file = tmp_path / FILES[target]
    export_run(run, [target], file)
    images = trained_run(run).images[:64]
    found = []
    for path in (run / "model.pt", file):
        with exported(path) as model:
            found.append([probability for _, probability in classify(model, images)])
    # Undivided, no probability of ten classes would be far from a tenth.
    assert np.mean(found[0]) > 0.7
    assert np.abs(np.subtract(*found)).mean() < 0.05
