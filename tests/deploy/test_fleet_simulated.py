"""Some hundred phones at a real gateway: rounds end, nothing leaks, and nobody is preferred."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.config import Config, load_config
from simulations.bench.fleet.profile import PROFILES, Profile, Zone
from simulations.bench.fleet.simulate import Fleet, simulate

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def fleet_config(tiny_toml: str, tmp_path: Path) -> Callable[..., Config]:
    def make(fleet: Fleet, *items: str) -> Config:
        file = tmp_path / "tiny.toml"
        file.write_text(tiny_toml)
        own = [f"partition.num-clients={fleet.phones}", f"out={tmp_path / 'run'}"]
        own += [f"round.deadline-seconds={fleet.deadline_seconds}"]
        return load_config(file, {}, [*own, *items])

    return make


def tasks_of_a_phone(figures: dict[str, Any], zone: int) -> float:
    found = figures["zones"][zone]
    return float(found["tasks"]) / float(found["phones"])


def test_three_hundred_phones_train_and_leave_nothing_behind(
    fleet_config: Callable[..., Config],
) -> None:
    fleet = Fleet(phones=300, faults=0.2, connections=10, check_ins_per_second=30)
    asked = ("train.rounds=5", "train.clients-per-round=60", "round.over-selection=0.5")
    config = fleet_config(fleet, *asked)
    figures = simulate(config, fleet)

    assert (figures["rounds"], figures["accepted_rounds"]) == (5, 5)
    assert figures["accuracy"] > 0.6
    assert 0.9 * 300 <= figures["clients"] <= 300
    assert figures["failed_calls"] == {}
    # What phones were told is what the service has counted and the run has used.
    verdicts, counters = Counter(figures["verdicts"]), Counter(figures["counters"])
    assert set(verdicts) <= {"accepted", "late", "noted"}
    assert verdicts["accepted"] == counters["accepted"]
    # Who comes after enough others is told to be late, but counted as asked in reserve.
    late = counters["late"]
    assert late <= verdicts["late"] <= late + counters["over-selected"]
    assert verdicts["noted"] == counters["declined"]
    assert figures["faults"]["silent"] > 0
    assert 5 * 30 <= figures["valid_updates"] <= verdicts["accepted"]
    lines = Path(figures["run"], "metrics.jsonl").read_text().splitlines()
    rounds = [json.loads(line) for line in lines]
    assert sum(line["valid"] for line in rounds) == figures["valid_updates"]

    files, memory = figures["descriptors"], figures["resident_megabytes"]
    assert files["last"] <= files["first"] + 3
    assert memory["peak"] < memory["first"] + 100
    # Calls come as random moments would, and not together.
    assert figures["check_ins"]["variance_over_mean"] < 6
    assert figures["most_open_check_ins"] <= 300


def test_a_phone_of_its_own_connection_is_served_as_any(
    fleet_config: Callable[..., Config],
) -> None:
    fleet = Fleet(phones=250, faults=0.0, connections=0, check_ins_per_second=25)
    figures = simulate(fleet_config(fleet, "train.rounds=2", "train.clients-per-round=50"), fleet)
    assert figures["valid_updates"] == 100
    assert figures["descriptors"]["peak"] >= figures["descriptors"]["first"] + 200
    assert figures["descriptors"]["last"] <= figures["descriptors"]["first"] + 3


def test_who_calls_twenty_times_as_often_is_not_asked_more_often(
    fleet_config: Callable[..., Config],
) -> None:
    fleet = Fleet(phones=400, profile=PROFILES["greedy"], faults=0.0, check_ins_per_second=40)
    figures = simulate(fleet_config(fleet, "train.rounds=8", "train.clients-per-round=100"), fleet)
    patient, greedy = figures["zones"]
    assert (patient["phones"], greedy["phones"]) == (380, 20)
    assert greedy["check_ins"] / 20 > 5 * patient["check_ins"] / 380
    # Eight rounds ask each phone twice on average, and the evaluation asks every fourth: 45 tasks
    # for twenty phones, with a standard deviation of six. Were calls drawn, it would be 150.
    assert tasks_of_a_phone(figures, 0) == pytest.approx(2.25, abs=0.3)
    assert 25 <= greedy["tasks"] <= 65


def test_phones_of_a_short_day_are_asked_as_often_while_they_are_there(
    fleet_config: Callable[..., Config],
) -> None:
    # Beyond its day a phone counts as there for another minute; the day must be long beside that,
    # and the run must take most of the day.
    day = Profile((Zone(), Zone(starts=0.05, awake=0.3)), day_seconds=240)
    fleet = Fleet(phones=400, profile=day, faults=0.0, check_ins_per_second=40)
    figures = simulate(
        fleet_config(
            fleet, "train.rounds=100", "train.clients-per-round=40", "round.over-selection=1"
        ),
        fleet,
    )
    always, short = figures["zones"]
    assert short["tasks"] > 20
    share = short["tasks_per_minute"] / always["tasks_per_minute"]
    assert 0.5 < share < 2
