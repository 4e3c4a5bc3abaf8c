"""Runs of a deployment in this process: three phones' names, and what a run's files say."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.experiment import run_config
from common.identity import client_of_phone
from server.app import run_experiment
from server.round.roster import Roster
from simulations.run import read_summary

Make = Callable[..., Path]

NAMES = ("anna", "ben", "carla")
IDS = {name: client_of_phone(name) for name in NAMES}
HALL = 3 * 10**9
OPTIONS = ("train.rounds=2", "train.clients-per-round=0")


def run(folder: Path, grid: Any, place: Path) -> Any:
    values = {"experiment": str(folder / "config.toml"), "overrides": ""}
    run_experiment(grid, run_config(values), roster=Roster(place))
    return read_summary(folder)


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def accounts(folder: Path) -> dict[str, dict[str, str]]:
    rows = csv.DictReader((folder / "devices.csv").read_text().splitlines())
    return {row["name"]: row for row in rows}
