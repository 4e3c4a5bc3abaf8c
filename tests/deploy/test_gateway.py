"""Phones at a real gateway, beside devices: over TLS, each process as its owner starts it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from server.round.roster import Roster

Make = Callable[..., Any]

PHONES = ("anna", "ben")
OPTIONS = ("train.rounds=3", "train.clients-per-round=3", "round.deadline-seconds=120")


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def town(deployment: Make) -> Any:
    """A server, a gateway with two phones, and a device; all run."""
    made = deployment("hall", phones=PHONES)
    for number, name in enumerate(("hall", *PHONES)):
        made.give_images(name, number)
    made.start_server()
    made.start_gateway()
    made.start_device("hall")
    for name in PHONES:
        made.start_phone(name)
    return made


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("strategy", ["scaffold", "fed3r"])
def test_phones_and_a_device_give_the_head_that_devices_in_one_process_give(
    town: Any, head_in_process: Make, tiny: Make, strategy: str
) -> None:
    options = (*OPTIONS, f"strategy.name={strategy}")
    run = tiny(*options)
    summary = town.run(run)
    rounds = metrics(run)
    assert [(line["valid"], line["dropouts"]) for line in rounds] == [(3, {})] * len(rounds)
    wanted = head_in_process(town, *options)
    for key, array in load_file(run / "head.safetensors").items():
        np.testing.assert_allclose(array, wanted[key], rtol=0, atol=1e-6)
    assert np.abs(wanted["weight"]).max() > 0.01
    assert summary["client_tests"]["clients"] == 3
    assert Roster(town.folder / "server").names == ["anna", "ben", "hall"]
