"""A deployment on loopback: the real SuperLink and the real devices, each a process of its own."""

from __future__ import annotations

import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import psutil
import pytest
import tomli_w
from flwr.app import Context, Message, RecordDict
from numpy.typing import NDArray
from safetensors.numpy import load_file

import server.app
from client.app import app as client_app
from common.identity import client_of_phone
from common.messages import TrainRequest
from common.phones import GATEWAY
from server.export.runtime_cards import ExportReport
from server.round.roster import CLIENT, client_file
from simulations.deploy.folder import Ports, write_deployment
from simulations.deploy.launch import run_deployed
from simulations.engines.flower import command, flower_environment
from simulations.engines.in_process import InProcessGrid

FAULTS = Path(__file__).parent / "faults"
collect_ignore = ["faults"]  # they import where a broken device does, and nowhere else
FEDHEAD = [sys.executable, "-m", "fedhead"]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def _with_fault(fault: str) -> dict[str, str]:
    environment = flower_environment()
    found = [str(FAULTS), environment["PYTHONPATH"]]
    return environment | {"PYTHONPATH": os.pathsep.join(found), "FAULT": fault}


class Deployment:
    """A deployment's folder, and the processes started from it.

    Attributes:
        folder: as ``fedhead deploy`` writes it.
        port: of the server, on loopback, for devices.
        operator_port: likewise, for operators.
        delivery_port: likewise, for models.
        gateway_port: likewise, for phones.
        logs: what each process said, by the name it was started under.
    """

    def __init__(
        self, folder: Path, *names: str, address: str = "localhost", phones: Sequence[str] = ()
    ) -> None:
        self.folder = folder
        ports = _free_ports(4)
        self.port, self.operator_port, self.delivery_port, self.gateway_port = ports
        write_deployment(
            folder,
            addresses=[address],
            devices=names,
            phones=phones,
            ports=Ports(*ports),
            days=30,
        )
        self.logs: dict[str, Path] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def device(self, name: str) -> Path:
        """A device's folder, or a phone's."""
        phone = self.folder / "phones" / name
        return phone if phone.is_dir() else self.folder / "devices" / name

    def set(self, name: str, **values: object) -> None:
        """Change lines of a device's or phone's settings."""
        folder = self.device(name)
        (path,) = (folder / f for f in ("device.toml", "phone.toml") if (folder / f).exists())
        text = path.read_text()
        for key, value in values.items():
            text = re.sub(rf"(?m)^{key} = .*", f"{key} = {value}", text)
        path.write_text(text)

    def give_images(self, name: str, number: int, count: int = 60) -> None:
        """A device's own part of scikit-learn's digits, a sub-folder a class."""
        pytest.importorskip("sklearn", reason="pip install 'fedhead[demo]'")
        from PIL import Image
        from sklearn.datasets import load_digits

        digits = load_digits()
        for i in range(number * count, (number + 1) * count):
            path = self.device(name) / "images" / str(digits.target[i]) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((digits.images[i] * (255 / 16)).astype(np.uint8)).save(path)

    def client(self, name: str) -> int:
        """What the logs of a run call a device or phone."""
        if (self.folder / "phones" / name).is_dir():
            return client_of_phone(name)
        return int(CLIENT.read(client_file(self.folder / "server", name))["client"])

    def start(
        self,
        name: str,
        command: list[str],
        environment: Mapping[str, str] | None = None,
        stdin: IO[bytes] | int | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start any process; it has ended when the test has."""
        self.logs[name] = self.folder.parent / f"{name}.log"
        with self.logs[name].open("wb") as output:
            process = subprocess.Popen(
                command, env=environment, stdin=stdin, stdout=output, stderr=subprocess.STDOUT
            )
        self.processes[name] = process
        return process

    def start_server(self, *, waits: bool = True, fault: str = "") -> None:
        """Start the server as its owner would; it is ready, unless that is not waited for.

        Args:
            waits: until it is ready.
            fault: of faults/.
        """
        command = [*FEDHEAD, "serve", str(self.folder / "server")]
        self.start("server", command, _with_fault(fault) if fault else None)
        if waits:
            self.wait_for("server", "serving at port")

    def start_plain_server(self) -> dict[str, str]:
        """Start Flower's own SuperLink at the devices' port, which runs whatever app it is given.

        Returns:
            An environment in which ``flwr`` commands reach it.
        """
        server, home = self.folder / "server", self.folder.parent / "plain"
        home.mkdir()
        link = {"address": f"localhost:{self.port}", "root-certificates": str(server / "ca.crt")}
        connection = {"superlink": {"default": "plain", "plain": link}}
        (home / "config.toml").write_text(tomli_w.dumps(connection))
        environment = flower_environment() | {"FLWR_HOME": str(home)}
        options = {
            "ssl-certfile": server / "server.crt",
            "ssl-keyfile": server / "server.key",
            "ssl-ca-certfile": server / "ca.crt",
            "database": server / "superlink.db",
            "host": "0.0.0.0",
            "port": self.port,
        }
        self.start(
            "plain",
            [
                command("flower-superlink", environment),
                *[f"--{key}={value}" for key, value in options.items()],
                *("--enable-supernode-auth", "--disable-runtime-dependency-installation"),
            ],
            environment,
        )
        self.wait_for("plain", "Uvicorn running")
        return environment

    def start_device(
        self, name: str, *, fault: str = "", seconds: float = 0, client: int = 0
    ) -> None:
        """Start a device as its owner would, or one that is broken as faults/ says."""
        environment = flower_environment()
        if fault:
            more = {"FAULT_SECONDS": str(seconds), "FAULT_CLIENT": str(client)}
            environment = _with_fault(fault) | more
        self.start(name, [*FEDHEAD, "device", str(self.device(name))], environment)

    def start_gateway(self, *, waits: bool = True) -> None:
        """Start the gateway as its owner would."""
        self.start("gateway", [*FEDHEAD, "gateway", str(self.folder)])
        if waits:
            self.wait_for("gateway", "phones are served at port")

    def start_phone(self, name: str) -> None:
        """Start a phone of Python, which trains on its folder of images."""
        self.start(name, [*FEDHEAD, "phone", str(self.device(name))])

    def said(self, name: str) -> str:
        return self.logs[name].read_text(errors="replace")

    def wait_for(self, name: str, words: str, seconds: float = 240) -> None:
        """Wait until a process has said something."""
        deadline = time.monotonic() + seconds
        while words not in self.said(name):
            assert time.monotonic() < deadline, self.said(name)
            time.sleep(0.2)

    def run(self, run: Path) -> dict[str, Any]:
        """Run a run folder's experiment on the devices; its closing figures."""
        return run_deployed(run, self.folder)

    def kill(self, name: str) -> None:
        """A device loses its power."""
        process = psutil.Process(self.processes[name].pid)
        for part in [process, *process.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                part.kill()

    def end(self) -> None:
        """End what still runs, as its owner would; fedhead's own processes must do so cleanly."""
        running = [p for p in self.processes.values() if p.poll() is None]
        for process in running:
            process.send_signal(signal.SIGTERM)
        try:
            codes = {tuple(process.args): process.wait(60) for process in running}
        finally:
            for process in running:
                process.kill()
        ours = tuple(FEDHEAD)
        assert not [command for command, code in codes.items() if code and command[:3] == ours]


class SameDevices(InProcessGrid):
    """The images and client ids of deployed devices, in this process.

    Args:
        devices: folders by client id.
        run_config: Flower's.
        trains: whether a client answers in a round.
    """

    def __init__(
        self,
        devices: Mapping[int, Path],
        run_config: dict[str, Any],
        trains: Callable[[int, int], bool],
    ) -> None:
        def app(message: Message, context: Context) -> Message:
            client = int(str(context.node_config["client-id"]))
            if message.metadata.message_type == "train":
                number = TrainRequest.read(message.content).round_number
                if not trains(client, number):
                    raise RuntimeError("does not count in the deployment")
            return client_app(message, context)

        super().__init__(app, len(devices), run_config)
        for context, (client, folder) in zip(
            self._contexts.values(), sorted(devices.items()), strict=True
        ):
            context.node_config = {
                "data": f"folder:{folder / 'images'}",
                "state": str(folder / "other-state"),
                "client-id": client,
            }


@pytest.fixture
def head_in_process(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, NDArray[np.float32]]]:
    """Runs the same on a deployment's images in this process; gives the head."""
    report = ExportReport("model", Path(), 0, "")

    def run(
        deployed: Deployment,
        *options: str,
        trains: Callable[[int, int], bool] = lambda client, number: True,
        without: Sequence[str] = (),
    ) -> dict[str, NDArray[np.float32]]:
        path = tiny(*options, name="reference")
        values = {"experiment": str(path / "config.toml"), "overrides": ""}
        devices = {
            deployed.client(file.stem): deployed.device(file.stem)
            for file in [
                *(deployed.folder / "server" / "devices").glob("*.client"),
                *(deployed.folder / "phones").glob("*"),
            ]
            if file.stem not in (GATEWAY, *without)
        }
        context = Context(
            run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=values
        )
        with monkeypatch.context() as patch:
            patch.setattr(server.app, "export", lambda *_: report)  # nobody looks at its model
            server.app.app(SameDevices(devices, values, trains), context)
        return load_file(path / "head.safetensors")

    return run


@pytest.fixture
def free_ports() -> Callable[[int], list[int]]:
    """Finds so many."""
    return _free_ports


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Callable[..., Deployment]]:
    """Makes a deployment for devices of these names."""
    numbers = itertools.count()
    with ExitStack() as stack:

        def make(*names: str, **options: Any) -> Deployment:
            made = Deployment(tmp_path / str(next(numbers)) / "deployment", *names, **options)
            stack.callback(made.end)
            return made

        yield make
