"""Phones at a real gateway, beside devices: over TLS, each process as its owner starts it."""

from __future__ import annotations

import json
import random
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from common.identity import client_of_phone
from server.record.accounts import COLUMNS
from server.record.checkpoint import load_latest
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


KILLS = ("service",) * 8 + ("SuperNode",) * 4 + ("anna",) * 4 + ("ben",) * 4
MODULES = {"service": "client.gateway.service", "SuperNode": "client.supernode"}


def kill_part(made: Any, part: str) -> None:
    """SIGKILL one of the gateway's processes; its keeper sees it end."""
    for process in psutil.Process(made.processes["gateway"].pid).children(recursive=True):
        words = process.cmdline()
        if MODULES[part] in words and not any(word.endswith("keeper.py") for word in words):
            process.kill()
            return
    raise AssertionError(f"no {part} runs: {made.said('gateway')}")


def wait_for_lines(
    run: Path, count: int, process: Any, seconds: float = 300
) -> list[dict[str, Any]]:
    """The run's metrics once it has finished so many rounds."""
    deadline = time.monotonic() + seconds
    while not (run / "metrics.jsonl").exists() or len(metrics(run)) < count:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return metrics(run)


def counted(run: Path) -> set[tuple[int, int]]:
    """Client and round of each update that counted, from the accounts of all rounds."""
    found, before = set[tuple[int, int]](), dict[int, int]()
    for folder in sorted((run / "checkpoint").glob("[0-9]*"), key=lambda path: int(path.name)):
        number = int(folder.name)
        kept = load_latest(run / "checkpoint", rounds=number)
        assert kept is not None
        valid = 1 + COLUMNS.index("valid")
        for row in kept.arrays["accounts"].tolist():
            more = row[valid] - before.get(row[0], 0)
            assert more in (0, 1), f"round {number}: client {row[0]} counted {more} times"
            before[row[0]] = row[valid]
            found |= {(row[0], number)} if more else set()
    return found


def acknowledged(made: Any, logs: Mapping[str, list[Path]]) -> set[tuple[int, int]]:
    """Client and round of each update that a phone was told is accepted."""
    found = set()
    for name, files in logs.items():
        for file in files:
            rounds = re.findall(r"round (\d+): sent .*: accepted", file.read_text(errors="replace"))
            found |= {(client_of_phone(name), int(number)) for number in rounds}
    return found


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_kills_lose_no_update_that_was_acknowledged_and_count_none_twice(
    deployment: Make, head_in_process: Make, tiny: Make
) -> None:
    made = deployment(phones=PHONES)
    made.start_server()
    made.start_gateway()
    logs: dict[str, list[Path]] = {name: [] for name in PHONES}

    def start(name: str) -> None:
        made.start_phone(name)
        # Each start has a log of its own.
        kept = made.logs[name].with_name(f"{name}-{len(logs[name])}.log")
        made.logs[name] = made.logs[name].rename(kept)
        logs[name].append(kept)

    for number, name in enumerate(PHONES):
        made.give_images(name, number)
        start(name)
    options = ("strategy.name=scaffold", "train.clients-per-round=2", "round.quorum=0.5")
    run = tiny(*options, "train.rounds=1000", "round.deadline-seconds=180",
               "round.keep-checkpoints=1000")  # fmt: skip
    command = [sys.executable, "-m", "fedhead", "resume", str(run), "--deployment"]
    process = made.start("run", [*command, str(made.folder)])
    wait_for_lines(run, 2, process, 1200)  # files for phones are written first
    chance = random.Random(7)
    for part in chance.sample(KILLS, len(KILLS)):
        time.sleep(chance.uniform(0, 8))
        done = len(metrics(run))
        if part in PHONES:
            made.kill(part)
            made.processes[part].wait(60)
            start(part)
        else:
            kill_part(made, part)
        lines = wait_for_lines(run, done + 2, process)
        assert lines[done + 1]["valid"] == 2, (part, lines[done:], made.said("gateway"))
    for name in ("run", "server"):  # in the middle of a round
        made.processes[name].send_signal(signal.SIGTERM)
        made.processes[name].wait(120)
    kept = load_latest(run / "checkpoint")
    assert kept is not None
    found = counted(run)
    last = kept.round_number
    told = {one for one in acknowledged(made, logs) if one[1] <= last}
    assert told <= found
    assert len(told) > last  # the phones' logs are read
    reference = head_in_process(
        made, *options, f"train.rounds={last}",
        trains=lambda client, number: (client, number) in found,
    )  # fmt: skip
    for key, array in {"weight": kept.head.weight, "bias": kept.head.bias}.items():
        distance = np.linalg.norm(array - reference[key])
        assert distance <= 1e-5 * np.linalg.norm(reference[key])
