"""A deployment's folder and a real one: SuperLink with TLS, SuperNodes with keys of their own."""

from __future__ import annotations

import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store
from safetensors.numpy import load_file

from client.app import app as client_app
from common.errors import ConfigError, RunError
from server.app import app as server_app
from simulations.deploy.folder import write_deployment
from simulations.deploy.launch import device_command, run_deployed, superlink_command
from simulations.grid import InProcessGrid

Make = Callable[..., Path]

FEDHEAD = [sys.executable, "-m", "simulations"]


def deploy(folder: Path, *devices: str, port: int = 9092) -> Path:
    addresses = ["localhost", "127.0.0.1"]
    write_deployment(folder, addresses=addresses, devices=devices, port=port, days=30)
    return folder


def keys(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.key")}


def test_the_server_certificate_is_the_authoritys_for_each_address(tmp_path: Path) -> None:
    folder = deploy(tmp_path / "d", "kitchen")
    authority, server = (
        x509.load_pem_x509_certificate((folder / name).read_bytes())
        for name in ("devices/kitchen/ca.crt", "server/server.crt")
    )
    builder = PolicyBuilder().store(Store([authority])).time(datetime.now(UTC))
    verifier = builder.build_server_verifier(x509.DNSName("localhost"))
    assert verifier.verify(server, []) == [server, authority]
    with pytest.raises(x509.verification.VerificationError):
        builder.build_server_verifier(x509.DNSName("example.org")).verify(server, [])


def test_keys_are_their_owners_alone_and_never_replaced(tmp_path: Path) -> None:
    folder = deploy(tmp_path / "d", "kitchen")
    before = keys(folder)
    assert set(before) == {"authority/ca.key", "server/server.key", "devices/kitchen/device.key"}
    for name in before:
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600, name
    settings = folder / "devices" / "kitchen" / "device.toml"
    settings.write_text(settings.read_text().replace("folder:pictures", "folder:/mine"))
    certificate = (folder / "server" / "server.crt").read_bytes()
    deploy(folder, "hall")
    assert {name: keys(folder)[name] for name in before} == before
    assert "folder:/mine" in settings.read_text()
    assert (folder / "server" / "server.crt").read_bytes() != certificate
    assert "hall, kitchen" in (folder / "README.md").read_text()


def test_half_a_pair_of_keys_is_refused(tmp_path: Path) -> None:
    folder = deploy(tmp_path / "d", "kitchen")
    (folder / "devices" / "kitchen" / "device.key").unlink()
    before = keys(folder)
    with pytest.raises(RunError, match=r"device\.key is missing"):
        deploy(folder, "kitchen")
    assert keys(folder) == before


def test_wrong_names_are_named_together_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        write_deployment(
            tmp_path / "d", addresses=["a b"], devices=["../x", "a", "a"], port=1, days=1
        )
    assert [re.sub(r" (is|must).*", "", problem) for problem in error.value.problems] == [
        "address 'a b'", "device '../x'", "device 'a'",
    ]  # fmt: skip
    assert not (tmp_path / "d").exists()


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(RunError, match="holds no deployment"):
        deploy(tmp_path, "a")
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_flowers_commands_name_the_folders_files_and_the_budget(tmp_path: Path) -> None:
    folder = deploy(tmp_path / "d", "kitchen", port=9400)
    device = folder / "devices" / "kitchen"
    text = device_command(device)
    assert text[text.index("--superlink") + 1] == "localhost:9400"
    assert f'data="folder:{device}/pictures"' in text[-1]
    assert "max-threads=1" in text[-1]
    server = superlink_command(folder / "server")
    assert "--enable-supernode-auth" in server
    assert "--insecure" not in server


def test_a_wrong_key_in_device_toml_names_file_and_key(tmp_path: Path) -> None:
    device = deploy(tmp_path / "d", "kitchen") / "devices" / "kitchen"
    with (device / "device.toml").open("a") as file:
        file.write("max-thread = 2\n")
    with pytest.raises(ConfigError, match=r"device\.toml: 1 problem.*did you mean max-threads"):
        device_command(device)


# From here on with real processes.


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@contextmanager
def processes(*commands: list[str], logs: Path) -> Iterator[list[Path]]:
    """Commands of the command line, told to end at the end."""
    logs.mkdir()
    files = [logs / f"{number}.log" for number in range(len(commands))]
    started = []
    for arguments, file in zip(commands, files, strict=True):
        with file.open("wb") as output:
            started.append(
                subprocess.Popen([*FEDHEAD, *arguments], stdout=output, stderr=subprocess.STDOUT)
            )
    try:
        yield files
    finally:
        for process in started:
            process.send_signal(signal.SIGTERM)
        for process in started:
            assert process.wait(30) == 0


def pictures(folder: Path, number: int, count: int = 60) -> None:
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for i in range(number * count, number * count + count):
        path = folder / str(digits.target[i]) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[i] * (255 / 16)).astype(np.uint8)).save(path)


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.5)


class _SameDevices(InProcessGrid):
    """The deployed devices' folders and client ids, in this process."""

    devices: dict[int, Path]

    def __init__(self, run_config: dict[str, Any]) -> None:
        super().__init__(client_app, len(self.devices), run_config)
        for context, (client, folder) in zip(
            self._contexts.values(), sorted(self.devices.items()), strict=True
        ):
            context.node_config = {
                "data": f"folder:{folder / 'pictures'}",
                "state": str(folder / "other-state"),
                "client-id": client,
            }


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_five_devices_over_tls_give_the_head_of_the_in_process_engine(
    tiny: Make, tmp_path: Path
) -> None:
    names = ["a", "b", "c", "d", "e"]
    port, *ports = free_ports(1 + len(names))
    folder = deploy(tmp_path / "deployment", *names, port=port)
    devices = [folder / "devices" / name for name in names]
    for number, (device, own) in enumerate(zip(devices, ports, strict=True)):
        pictures(device / "pictures", number)
        text = (device / "device.toml").read_text()
        (device / "device.toml").write_text(re.sub(r"(?m)^port = .*", f"port = {own}", text))
    options = ("train.rounds=5", f"train.clients-per-round={len(names)}")
    commands = [["serve", str(folder / "server")], *(["device", str(d)] for d in devices)]
    with processes(*commands, logs=tmp_path / "logs") as (server_log, *_):
        wait_until(lambda: "serving at port" in server_log.read_text(), 120)
        run = tiny(*options, name="deployed")
        summary = run_deployed(run, folder)
    assert (summary["clients"], summary["valid_updates"]) == (5, 25)
    assert (summary["rejected_updates"], summary["failed_updates"]) == (0, 0)

    files = {name: folder / "server" / "devices" / f"{name}.client" for name in names}
    _SameDevices.devices = {
        int(files[name].read_text()): folder / "devices" / name for name in names
    }
    reference = tiny(*options, name="reference")
    from flwr.app import Context, RecordDict

    values = {"experiment": str(reference / "config.toml"), "overrides": ""}
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=values)
    server_app(_SameDevices(values), context)
    ours, theirs = (load_file(path / "head.safetensors") for path in (reference, run))
    for key, array in ours.items():
        assert np.linalg.norm(theirs[key] - array) <= 1e-5 * np.linalg.norm(array), key
