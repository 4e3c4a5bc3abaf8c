"""Each long-running command, ended by SIGTERM and by SIGKILL: nothing of it is left."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from simulations.deploy.launch import connection
from simulations.engines.flower import command, flower_environment

if TYPE_CHECKING:
    from tests.deploy.conftest import Deployment

FEDHEAD = [command("python", flower_environment()), "-m", "fedhead"]
MARK = "FEDHEAD_TEST_MARK"
GONE_SECONDS = 10
ENDLESS = ("train.rounds=100000", "train.clients-per-round=1", "round.deadline-seconds=30")


def start(deployed: Deployment, name: str, *arguments: object) -> subprocess.Popen[bytes]:
    """A command of fedhead's; all it starts can be told by a mark in the environment."""
    environment = flower_environment() | {MARK: f"{deployed.folder}:{name}"}
    return deployed.start(name, [*FEDHEAD, *map(str, arguments)], environment)


def of(deployed: Deployment, name: str) -> dict[int, list[str]]:
    """Command lines of what runs of it, whoever is its parent by now."""
    found = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error, FileNotFoundError):
            lives = process.status() != psutil.STATUS_ZOMBIE
            if lives and process.environ().get(MARK) == f"{deployed.folder}:{name}":
                found[process.pid] = process.cmdline()
    return found


def wait_until(condition: Callable[[], object], what: str, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def end(deployed: Deployment, name: str, number: signal.Signals, least: int) -> int:
    """Send a signal to the command itself, and see all of it go; its exit code."""
    assert len(of(deployed, name)) >= least, of(deployed, name)
    deployed.processes[name].send_signal(number)
    code = deployed.processes[name].wait(60)
    wait_until(
        lambda: not of(deployed, name), f"left of {name}: {of(deployed, name)}", GONE_SECONDS
    )
    return code


def is_free(port: int) -> bool:
    with suppress(OSError), socket.create_server(("127.0.0.1", port)):
        return True
    return False


def run_status(deployed: Deployment) -> list[str]:
    with connection(deployed.folder) as environment:
        listed = subprocess.run(
            [command("flwr", environment), "ls", "--format", "json"],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
    return [run["status"] for run in json.loads(listed.stdout)["runs"]]


class Runs:
    """One run after the other on a deployment, each going on with the same endless run folder."""

    def __init__(self, deployed: Deployment, folder: Path) -> None:
        self.deployed, self.folder = deployed, folder

    def start(self) -> None:
        start(self.deployed, "run", "resume", self.folder, "--deployment", self.deployed.folder)
        self.wait_for_round()

    def wait_for_round(self) -> None:
        before = self.rounds()
        running = self.deployed.processes["run"]
        wait_until(
            lambda: self.rounds() > before or running.poll() is not None, self.deployed.said("run")
        )
        assert running.poll() is None, self.deployed.said("run")

    def rounds(self) -> int:
        metrics = self.folder / "metrics.jsonl"
        return metrics.read_text().count("\n") if metrics.exists() else 0


def server_has(deployed: Deployment, name: str) -> bool:
    return any(any(name in part for part in line) for line in of(deployed, "server").values())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nothing_is_left_of_what_was_ended(
    deployment: Callable[..., Deployment], tiny: Callable[..., Path]
) -> None:
    deployed = deployment("a")
    deployed.give_images("a", 0)
    server, device = deployed.folder / "server", deployed.device("a")
    start(deployed, "server", "serve", server)
    deployed.wait_for("server", "serving at port")
    start(deployed, "device", "device", device)
    runs = Runs(deployed, tiny(*ENDLESS, name="run"))

    # The device: its API is its owner's alone, and a second one does not start.
    deployed.wait_for("device", "SuperNode ID")
    assert_owners_alone(deployed)
    for name, *second in (("device", device), ("serve", server)):
        done = subprocess.run(
            [*FEDHEAD, name, *map(str, second)], capture_output=True, text=True, timeout=60
        )
        said = done.stdout + done.stderr
        assert done.returncode == 1
        assert f"fedhead {name} runs already, as process" in " ".join(said.split())
        assert "$ " not in said

    # The operator's: the run ends, the server and the device stay.
    for number in (signal.SIGKILL, signal.SIGTERM):
        runs.start()
        assert server_has(deployed, "flwr-serverapp")
        code = end(deployed, "run", number, least=3)
        wait_until(lambda: not server_has(deployed, "flwr-serverapp"), "a ServerApp", GONE_SECONDS)
        if number == signal.SIGTERM:
            assert code == 130
            assert "interrupted; continue with: fedhead resume" in deployed.said("run")
    assert {status.partition(":")[0] for status in run_status(deployed)} == {"finished"}
    events = [json.loads(line) for line in (runs.folder / "events.jsonl").read_text().splitlines()]
    assert "the process that started this run has ended" in str(
        [event["message"] for event in events if event["event"] == "ended"]
    )

    # The device: the run waits for it, and it is let in again at once.
    runs.start()
    for number in (signal.SIGKILL, signal.SIGTERM):
        end(deployed, "device", number, least=5)
        start(deployed, "device", "device", device)
        deployed.wait_for("device", "SuperNode ID")
        runs.wait_for_round()
        assert "Again in" not in deployed.said("device")

    # Another process with its key, as after a loss of power: Flower takes it to be there already.
    copy = shutil.copytree(device, device.with_name("copy"))
    start(deployed, "copy", "device", copy)
    deployed.wait_for("copy", "Again in")
    assert "still counts this device as connected" in deployed.said("copy")
    end(deployed, "copy", signal.SIGTERM, least=3)

    # The server: the run says so, and its port is free.
    for number in (signal.SIGKILL, signal.SIGTERM):
        end(deployed, "server", number, least=3)
        wait_until(lambda: is_free(deployed.port), "the port", GONE_SECONDS)
        if number == signal.SIGKILL:
            assert deployed.processes["run"].wait(60) == 1
            assert "Flower's SuperLink does not answer" in " ".join(deployed.said("run").split())
            wait_until(lambda: not of(deployed, "run"), "of the run", GONE_SECONDS)
            start(deployed, "server", "serve", server)
            deployed.wait_for("server", "serving at port")
            assert_says_that_it_does_not_start(runs)
    end(deployed, "device", signal.SIGTERM, least=3)


def assert_says_that_it_does_not_start(runs: Runs) -> None:
    """Where nobody starts ServerApps any more."""
    deployed = runs.deployed
    (superexec,) = (
        pid for pid, line in of(deployed, "server").items() if "flower-superexec" in " ".join(line)
    )
    psutil.Process(superexec).kill()
    start(deployed, "run", "resume", runs.folder, "--deployment", deployed.folder)
    deployed.wait_for("run", "the server has not started the run within 20 s (pending)")
    assert end(deployed, "run", signal.SIGTERM, least=3) == 130


def assert_owners_alone(deployed: Deployment) -> None:
    """No port, no token in a command line, and a socket where nobody else may enter."""
    lines = of(deployed, "device")
    for pid in lines:
        assert not [c for c in psutil.Process(pid).net_connections() if c.status == "LISTEN"]
    (path,) = {part for line in lines.values() for part in line if part.endswith("/socket")}
    assert stat.S_IMODE(Path(path).parent.stat().st_mode) == 0o700
    with socket.socket(socket.AF_UNIX) as owner:
        owner.connect(path)
    code = f"import socket; socket.socket(socket.AF_UNIX).connect({path!r})"
    with suppress(PermissionError):  # only root can be somebody else
        other = subprocess.run(
            ["python3", "-c", code], user="nobody", capture_output=True, text=True
        )
        assert "PermissionError" in other.stderr


@pytest.mark.slow
def test_nothing_is_left_of_a_delivery_server(deployment: Callable[..., Deployment]) -> None:
    deployed = deployment("a")
    port = deployed.delivery_port
    for number in (signal.SIGKILL, signal.SIGTERM):
        start(deployed, "delivery", "delivery", "serve", deployed.folder / "server")
        deployed.wait_for("delivery", "serving models")
        assert not is_free(port)
        code = end(deployed, "delivery", number, least=1)
        assert is_free(port)
        assert code == (0 if number == signal.SIGTERM else -number)
