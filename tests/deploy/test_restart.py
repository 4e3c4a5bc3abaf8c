"""A deployment whose clock is set back, and whose SuperLink dies, under connected devices."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from server.record.checkpoint import load_latest

OPTIONS = ("strategy.name=scaffold", "train.rounds=3", "train.clients-per-round=2")


def rounds(run: Path) -> int:
    return len(list((run / "checkpoint").glob("[0-9]*")))


def wait_for_round(run: Path, process: Any) -> None:
    deadline = time.monotonic() + 300
    while not rounds(run):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_neither_a_clock_set_back_nor_a_superlink_restarted_changes_the_head(
    deployment: Callable[..., Any],
    head_in_process: Callable[..., Any],
    tiny: Callable[..., Path],
    set_clock: Callable[[int], None],
) -> None:
    made = deployment("a", "b")
    for number, name in enumerate(("a", "b")):
        made.give_images(name, number)
        made.start_device(name)
    made.start_server()

    def start(run: Path) -> Any:
        command = [sys.executable, "-m", "fedhead", "resume", str(run)]
        return made.start(run.name, [*command, "--deployment", str(made.folder)])

    clock = tiny(*OPTIONS, name="clock")
    process = start(clock)
    wait_for_round(clock, process)
    set_clock(-3000)  # within the hour by which a new certificate lies in the past
    assert process.wait(300) == 0, made.said("clock")
    times = [json.loads(line)["time"] for line in (clock / "events.jsonl").read_text().splitlines()]
    assert times != sorted(times)

    restart = tiny(*OPTIONS, name="restart")
    process = start(restart)
    wait_for_round(restart, process)
    (keeper,) = psutil.Process(made.processes["server"].pid).children()
    (superlink,) = keeper.children()
    superlink.kill()
    assert process.wait(300) == 1
    said = " ".join(made.said("restart").split())
    assert said.count("fedhead: ") == 1
    assert "Flower's SuperLink does not answer, or has lost the run" in said
    assert said.endswith(
        f"once the SuperLink runs: fedhead resume {restart} --deployment DEPLOYMENT"
    )
    assert made.processes["server"].wait(30) != 0
    assert load_latest(restart / "checkpoint") is not None
    made.start_server()
    assert start(restart).wait(300) == 0, made.said("restart")

    wanted = head_in_process(made, *OPTIONS)
    for run in (clock, restart):
        summary = json.loads((run / "summary.json").read_text())
        assert (summary["valid_updates"], summary["failed_updates"]) == (6, 0), run
        for key, array in load_file(run / "head.safetensors").items():
            distance = np.linalg.norm(array - wanted[key])
            assert distance <= 1e-5 * np.linalg.norm(wanted[key]), (run, key)
