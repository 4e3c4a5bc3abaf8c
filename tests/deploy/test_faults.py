"""Devices that break off, lie, loiter or do not belong: real processes, broken from outside."""

from __future__ import annotations

import csv
import json
import logging
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from numpy.linalg import norm
from safetensors.numpy import load_file

from simulations.deploy.certificates import write_server
from simulations.deploy.folder import write_deployment
from simulations.engines.flower import command, flower_environment

if TYPE_CHECKING:
    from tests.deploy.conftest import Deployment

DEADLINE = 30
ROUNDS = 10  # the slow one answers before the last
REFUSED = "is its key registered"
FINGERPRINT = "f" * 12


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_finishes_with_the_honest_devices(
    deployment: Callable[..., Deployment],
    head_in_process: Callable[..., dict],
    tiny: Callable[..., Path],
    free_ports: Callable[[int], list[int]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = {"nan": "nan", "foreign": "foreign", "slow": "slow", "garbled": "garbled"}
    faults = {"a": "", "b": "", "dies": "stuck"} | broken
    liars = ("thief", "giant", "crowd", "virtual")
    deployed = deployment(*faults, *liars)
    deployed.start_server()
    for number, name in enumerate((*faults, *liars)):
        deployed.give_images(name, number)
        options = {"seconds": 2.5 * DEADLINE, "client": deployed.client("a")}
        deployed.start_device(name, fault=faults.get(name, name), **options)
    intruders(deployed, *free_ports(1))
    for name in (*faults, *liars):
        deployed.wait_for(name, "SuperNode ID")
    options = (
        f"train.rounds={ROUNDS}",
        f"train.clients-per-round={len(faults)}",
        f"round.deadline-seconds={DEADLINE}",
        "round.quorum=0.25",
    )
    run = tiny(*options, name="deployed")
    with caplog.at_level(logging.INFO, "fedhead"), ThreadPoolExecutor(1) as pool:
        summary = pool.submit(deployed.run, run)
        deployed.wait_for("stranger", REFUSED)
        deployed.kill("stranger")  # while it pauses
        deployed.wait_for("dies", "ROUND 2 ")
        deployed.kill("dies")
        closing = summary.result()

    assert closing["clients"] == len(faults), "nobody else got in"
    assert_named(run, liars)
    assert closing["accepted_rounds"] == ROUNDS
    rounds = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["valid"] for r in rounds] == [3] + [2] * (ROUNDS - 1)
    assert [r["rejected"] for r in rounds] == [2] * ROUNDS
    # Who is still busy with an earlier round, or gone, is not asked again.
    assert [r["failed"] for r in rounds][:4] == [2, 2, 1, 1]

    events = [
        match.groups()
        for line in caplog.messages
        if (match := re.match(r"round (\d+): (\w+): (.*)", line))
    ]
    said = {name: [(int(n), why) for n, who, why in events if who == name] for name in faults}
    assert said["a"] == said["b"] == []
    every = list(range(1, ROUNDS + 1))
    for name, expected, reason in (
        ("nan", every, "not finite"),
        ("foreign", every, f"features are of backbone {FINGERPRINT[:12]}"),
        ("dies", [2], "no answer"),
    ):
        assert [n for n, _ in said[name]] == expected, name
        assert all(reason in why for _, why in said[name]), said[name]
    assert said["slow"][:2] == [(1, "no answer"), (1, "answered after it closed")]
    # Flower has handed its reply out, and has no other.
    assert [n for n, _ in said["garbled"]] == every
    assert all("Message Unavailable" in why for _, why in said["garbled"])
    assert any("cannot be read and is ignored" in line for line in caplog.messages)
    whys = Counter(why for _, why in said["slow"])
    assert whys.keys() == {"no answer", "answered after it closed"}
    assert sum(r["late"] for r in rounds) == whys["answered after it closed"]
    failed = 1 + whys["no answer"] + ROUNDS
    assert sum(r["failed"] for r in rounds) == failed == closing["failed_updates"]

    def is_honest(client: int, round_number: int) -> bool:
        honest = {deployed.client("a"), deployed.client("b")}
        return client in honest or (round_number == 1 and client == deployed.client("dies"))

    head = load_file(run / "head.safetensors")
    reference = head_in_process(deployed, *options, trains=is_honest, without=liars)
    for key, expected in reference.items():
        assert norm(head[key] - expected) <= 1e-5 * norm(expected), key
    assert_refused(deployed)


def assert_named(run: Path, liars: Iterable[str]) -> None:
    """Each of the liars has one line with its name, and one in devices.csv."""
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    refused = {e["name"]: e["message"] for e in lines if e["event"] == "refused"}
    assert refused == {
        "thief": "thief speaks for a, which it is not: refused",
        "giant": f"giant claims {2**62} examples, expected at most 1000 "
        "(round.max-examples-per-client): refused",
        "crowd": "crowd sends an invalid description, lists 100000 clients, "
        "expected at most 1: refused",
        "virtual": "virtual says that it is simulated: refused",
    }
    with (run / "devices.csv").open() as file:
        counted = {row["name"]: int(row["refused"]) for row in csv.DictReader(file)}
    assert {name: times for name, times in counted.items() if times} == dict.fromkeys(liars, 1)
    assert (run / "events.jsonl").stat().st_size < 100_000


def intruders(deployed: Deployment, port: int) -> None:
    """One device whose key nobody has registered, and one that does not speak TLS."""
    write_deployment(deployed.folder, addresses=["localhost"], devices=["stranger"], days=30)
    deployed.start_device("stranger")
    start_flower(
        deployed, "plaintext", "flower-supernode", "--insecure",
        "--superlink", f"localhost:{deployed.port}", "--port", str(port),
    )  # fmt: skip


def assert_refused(deployed: Deployment) -> None:
    """Both have tried, and were told no."""
    said = deployed.said("stranger")
    assert REFUSED in said
    assert "SuperNode ID" not in said + deployed.said("plaintext")
    assert "Connection attempt failed" in deployed.said("plaintext")
    assert "Attempted to register SuperNode" not in deployed.said("server"), "it came no further"


def start_flower(deployed: Deployment, name: str, *arguments: str) -> None:
    environment = flower_environment() | {"FLWR_HOME": str(deployed.folder.parent / name)}
    first, *rest = arguments
    deployed.start(name, [command(first, environment), *rest], environment)


@pytest.mark.slow
def test_a_device_refuses_a_server_that_is_not_its_own(
    deployment: Callable[..., Deployment],
) -> None:
    valid, expired = deployment("name", "authority"), deployment("time")
    valid.set("name", server=f'"127.0.0.2:{valid.port}"')
    foreign = expired.folder / "server" / "ca.crt"
    shutil.copyfile(foreign, valid.device("authority") / "ca.crt")
    authority, server = expired.folder / "authority", expired.folder / "server"
    write_server(
        (authority / "ca.key", authority / "ca.crt"),
        server / "server.key", server / "server.crt", ["localhost"], days=0,
    )  # fmt: skip
    for deployed in (valid, expired):
        deployed.start_plain_server()  # ours does not start where its certificate has expired
    for deployed, name, reason in (
        (valid, "name", "not valid for '127.0.0.2'"),
        (valid, "authority", "unable to get local issuer certificate"),
        (expired, "time", "certificate has expired"),
    ):
        deployed.start_device(name)
        deployed.wait_for(name, "Again in")
        said = next(line for line in deployed.said(name).splitlines() if "Again in" in line)
        assert "is refused" in said
        assert reason in said
        assert "SuperNode ID" not in deployed.said(name)
    for deployed in (valid, expired):
        assert "/v1/fleet/" not in deployed.said("plain"), "nothing was sent to it"
