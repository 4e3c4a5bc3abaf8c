"""A device's owner has the last word."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from client.budget import Budget, device_budget
from common.errors import ConfigError, DeclinedError


def test_without_limits_training_begins_at_once_and_nothing_is_written(tmp_path: Path) -> None:
    # A simulated client has no rest, and its cache may be read-only.
    for _ in range(2):
        Budget().begin(tmp_path / "state")
        Budget(allow="true", max_examples=3).begin(tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_a_device_rests_between_two_trainings(tmp_path: Path) -> None:
    budget = Budget(min_interval_seconds=3600)
    budget.begin(tmp_path)
    with pytest.raises(DeclinedError, match="it pauses between two trainings"):
        budget.begin(tmp_path)
    old = time.time() - 3601
    os.utime(tmp_path / "last-training", (old, old))
    budget.begin(tmp_path)


def test_a_clock_that_was_set_back_does_not_silence_a_device(tmp_path: Path) -> None:
    budget = Budget(min_interval_seconds=60)
    budget.begin(tmp_path)
    ahead = time.time() + 86400
    os.utime(tmp_path / "last-training", (ahead, ahead))
    budget.begin(tmp_path)


def test_the_owners_command_decides(tmp_path: Path) -> None:
    charging = tmp_path / "charging"
    budget = Budget(allow=f"test -e {charging}", min_interval_seconds=1)
    with pytest.raises(DeclinedError, match="its owner's command says no"):
        budget.begin(tmp_path / "state")
    assert not (tmp_path / "state").exists()  # the rest begins with a training, not with a refusal
    charging.touch()
    budget.begin(tmp_path / "state")
    assert (tmp_path / "state" / "last-training").exists()


def test_wrong_limits_are_named_together() -> None:
    with pytest.raises(ConfigError) as error:
        device_budget({"max-examples": "many", "min-interval-seconds": -1})
    assert [p.split("=")[0] for p in error.value.problems] == [
        "max-examples", "min-interval-seconds",
    ]  # fmt: skip
