"""Devices that get the head's changes from a real SuperLink, and lose power or a file meanwhile."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

OPTIONS = ("train.clients-per-round=2", "codec.down=drive")
WHOLE = 4 * 10 * 673  # bytes of this backbone's head


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_devices_that_restart_or_lose_their_head_end_with_the_head_of_those_that_do_not(
    deployment: Callable[..., Any],
    head_in_process: Callable[..., Any],
    tiny: Callable[..., Path],
) -> None:
    made = deployment("a", "b")
    for number, name in enumerate(("a", "b")):
        made.give_images(name, number)
        made.start_device(name)
    made.start_server()
    run = tiny(*OPTIONS, "train.rounds=2")
    summary = made.run(run)
    assert summary["downlink_bytes"] < WHOLE  # of two devices in two rounds
    kept = {name: next(made.device(name).rglob("known-head.safetensors")) for name in ("a", "b")}
    assert [int(load_file(path)["round"]) for path in kept.values()] == [2, 2]
    made.kill("a")
    made.processes["a"].wait(60)
    made.start_device("a")
    kept["b"].unlink()
    command = [sys.executable, "-m", "fedhead", "resume", str(run), "--set", "train.rounds=4"]
    process = made.start("longer", [*command, "--deployment", str(made.folder)])
    assert process.wait(300) == 0, made.said("longer")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["valid"] for line in lines] == [2, 2, 2, 2]
    resent = [line["downlink-bytes"] > WHOLE for line in lines]
    assert resent == [False, False, True, False]
    assert [int(load_file(path)["round"]) for path in kept.values()] == [4, 4]
    wanted = head_in_process(made, *OPTIONS, "train.rounds=4")
    for key, array in load_file(run / "head.safetensors").items():
        assert array.tobytes() == wanted[key].tobytes(), key
