"""Flower's real command through the fork server: a process for each call, imports for one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from client.fork_server import install

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
# Nobody listens at port 1: Flower's command tries again and again.
WAITING = ("--runtime-api-address", "127.0.0.1:1", "--token", "t", "--insecure")


class SuperNode:
    """Starts the command by its name, as Flower's SuperExec does, and waits for no call's end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        found = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
        self.flowers = dict(os.environ) | {"PYTHONPATH": str(ROOT), "PATH": found}
        self.environment = self.flowers | {"PATH": install(folder, found)}
        self.calls: list[subprocess.Popen[bytes]] = []

    def call(self, *arguments: str) -> Path:
        """The file with what the call says."""
        output = self.folder / f"{len(self.calls)}.log"
        with output.open("wb") as file:
            self.calls.append(
                subprocess.Popen(
                    ["flwr-clientapp", *arguments],
                    env=self.environment,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            )
        return output

    def is_ready(self) -> bool:
        with socket.socket(socket.AF_UNIX) as server, suppress(OSError):
            server.settimeout(1)
            server.connect(str(self.folder / "socket"))
            return server.recv(5) == b"ready"
        return False

    def help(self) -> str:
        """What Flower's own command says."""
        arguments = ["flwr-clientapp", "--help"]
        done = subprocess.run(arguments, env=self.flowers, capture_output=True, text=True)
        return done.stdout


@pytest.fixture
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuperNode]:
    node = SuperNode(tmp_path_factory.mktemp("n") / "s")
    yield node
    for call in node.calls:
        call.kill()
        call.wait()


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def children(call: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(call.pid).children()


def test_each_call_is_flowers_command_in_a_process_of_its_own(node: SuperNode) -> None:
    says = node.help()
    output = node.call("--help")
    server = node.calls[0]
    wait_until(node.is_ready)
    assert output.read_text() == says

    node.environment["COLUMNS"] = "200"
    node.call("--help")
    assert node.calls[1].wait(60) == 0
    wait_until(lambda: "[--root-certificates ROOT_CERT] [--parent-pid" in output.read_text())
    wait_until(lambda: not children(server))

    node.call(*WAITING)
    assert node.calls[2].wait(60) == 0
    (child,) = children(server)
    child.kill()
    wait_until(lambda: not children(server))
    assert node.is_ready(), "a call that died took the server along"

    server.kill()
    server.wait()
    last = node.call("--help")
    wait_until(node.is_ready)
    assert last.read_text().startswith("usage: ")
    assert node.calls[3].poll() is None, "the next call takes the dead server's place"


def test_it_is_ready_before_the_first_call(node: SuperNode) -> None:
    server = node.call()
    wait_until(node.is_ready)
    node.call("--help")
    assert node.calls[1].wait(60) == 0
    wait_until(lambda: server.read_text() == node.help())


def test_a_call_does_not_wait_long_for_a_server_that_is_not_ready(node: SuperNode) -> None:
    node.call(*WAITING)
    wait_until(lambda: bool(children(node.calls[0])))
    output = node.call("--help")
    assert node.calls[1].wait(20) == 0  # Flower gives a message up after 30 s
    assert output.read_text() == node.help()


def test_the_server_ends_with_the_supernode(node: SuperNode) -> None:
    code = "import subprocess, sys; subprocess.Popen(['flwr-clientapp', '--help']); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], env=node.environment, stdin=subprocess.PIPE
    ) as parent:
        wait_until(node.is_ready)
        (server,) = children(parent)
        parent.kill()
    wait_until(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE)


def test_without_a_fork_server_flower_goes_its_own_way(tmp_path: Path) -> None:
    node = SuperNode(tmp_path / ("d" * 100))  # too long for a socket's address
    output = node.call("--help")
    assert node.calls[0].wait(60) == 0
    assert output.read_text() == node.help()
