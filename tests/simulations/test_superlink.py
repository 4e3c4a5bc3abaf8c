"""Flower's SuperLink as a deployment has it: a busy database, and what a run's bundle may do."""

from __future__ import annotations

import asyncio
import importlib
import io
import socket
import sqlite3
import stat
import subprocess
import sys
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.supercore import sql_mixin
from flwr.supercore.constant import SQLITE_PRAGMAS
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufClient, ProtobufRequestContext
from flwr.superlink.main import create_app
from flwr.superlink.servicer.fleet import fleet_handlers
from flwr.superlink.servicer.runtime import runtime_handlers
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from sqlalchemy.exc import OperationalError

from common.bundle import installed_version
from common.errors import RunError
from simulations.deploy import app as app_module
from simulations.deploy import serverapp, standin, superlink
from simulations.deploy.folder import Ports, write_deployment
from simulations.deploy.operator import SECRET_HEADER, read_secret_file
from simulations.deploy.serverapp import read_bundle
from simulations.deploy.signing_key import new_key

# Flower's, when it makes its database.
pytestmark = pytest.mark.filterwarnings("ignore:No path_separator found:DeprecationWarning")

OWNER = "<id:none>"  # Flower's, where there are no accounts


@pytest.fixture
def flower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Flower's app with a database that is waited for briefly."""
    monkeypatch.setenv("FLWR_DATABASE", str(tmp_path / "state.db"))
    pragmas = (*SQLITE_PRAGMAS, ("busy_timeout", "50"))
    monkeypatch.setattr(sql_mixin, "SQLITE_PRAGMAS", pragmas)
    for module in (fleet_handlers, runtime_handlers):  # put back afterwards
        monkeypatch.setattr(module, "pull_messages", module.pull_messages)
    app = app_module.patient(create_app())
    yield app
    for owner in (app.state.linkstate_factory, app.state.linkstate_factory.objectstore_factory):
        (getattr(owner, "state_instance", None) or owner.store_instance)._engine.dispose()


def ask(app: Any, path: str, message: Any, keys: Any) -> int:
    """The status of a signed request of a device."""
    url = f"http://server{path}"
    content = message.SerializeToString()
    unsigned = httpx.Request(
        "POST", url, content=content, headers={"content-type": "application/protobuf"}
    )
    context = ProtobufRequestContext("", message, unsigned)
    NodeAuthHttpInterceptor(*keys).intercept(context, lambda _: httpx.Response(200))

    async def send() -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
            return (await client.send(unsigned)).status_code

    return asyncio.run(send())


def test_a_busy_database_is_answered_so_that_devices_ask_again(flower: Any, tmp_path: Path) -> None:
    keys = generate_key_pairs()
    public = public_key_to_bytes(keys[1])
    state = flower.state.linkstate_factory.state()
    state.create_node(OWNER, OWNER, public, 0)
    activate = ActivateNodeRequest(public_key=public, heartbeat_interval=30)
    other = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert ask(flower, "/v1/fleet/activate-node", activate, keys) == 503
    other.execute("ROLLBACK")
    other.close()
    assert ask(flower, "/v1/fleet/activate-node", activate, keys) == 200


def test_messages_whose_fetching_fails_are_not_taken_for_fetched(flower: Any) -> None:
    state = flower.state.linkstate_factory.state()

    def pull_messages(request: object, state: Any) -> None:
        state.create_node(OWNER, OWNER, b"key", 0)
        raise OperationalError("", {}, Exception("database is locked"))

    module = types.ModuleType("handlers")
    module.pull_messages = pull_messages  # type: ignore[attr-defined]
    for _ in range(2):
        app_module._at_once(module, "pull_messages")
        with pytest.raises(OperationalError):
            module.pull_messages(request=None, state=state)
        assert not state.get_node_info()
    assert fleet_handlers.pull_messages.__wrapped__
    assert runtime_handlers.pull_messages.__wrapped__
    assert flower.state.runtime_handlers is runtime_handlers


PYPROJECT = """
[project]
name = "app"
version = "1.0"
[tool.flwr.app]
publisher = "stranger"
[tool.flwr.app.components]
serverapp = "evil:app"
clientapp = "evil:app"
[tool.flwr.app.config]
experiment = "x.toml"
"""


def zipped(**files: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name.replace("_", "."), text)
    return buffer.getvalue()


def test_a_bundle_is_read_as_data() -> None:
    assert read_bundle(zipped(pyproject_toml=PYPROJECT, evil_py="raise SystemExit")) == {
        "publisher": "stranger",
        "name": "app",
        "version": "1.0",
        "config": {"experiment": "x.toml"},
    }


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no archive",
        zipped(README="nothing else"),
        zipped(pyproject_toml="not [ toml"),
        zipped(pyproject_toml="\xff" * 10 + PYPROJECT),
        zipped(pyproject_toml="[project]\nname = 'app'"),
        zipped(pyproject_toml="tool = 1"),
        zipped(pyproject_toml=PYPROJECT + "#" * (1 << 24)),
        zipped(pyproject_toml=PYPROJECT)[:-30],
        zipped(pyproject_toml=f"x = {'[' * 100_000}"),
    ],
)
def test_a_bundle_that_cannot_be_read_is_one_line(content: bytes) -> None:
    with pytest.raises(RunError, match="the run's bundle cannot be read") as error:
        read_bundle(content)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_a_command_that_would_run_other_code_refuses(tmp_path: Path) -> None:
    ours = {"flower-superexec", "flwr-serverapp"}
    refused = app_module.started_commands() - ours
    assert {"flwr-simulation", "flwr-clientapp", "flwr-agentapp"} <= refused
    path = standin.install(tmp_path, "/rest", ours, refused)
    assert path.split(":")[0] == str(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == ours | refused
    for name in sorted(refused):
        done = subprocess.run([tmp_path / name, "--token", "x"], capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stderr.startswith(f"fedhead: {name} is not run here")


def test_the_secret_goes_to_the_operators_door_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ProtobufClient, "__init__", ProtobufClient.__init__)
    write_deployment(tmp_path / "d", addresses=["localhost"], devices=["a"], days=1)
    server = tmp_path / "d" / "server"
    secret = (server / "operator.secret").read_text().strip()
    environment = standin.operator_environment(server)
    assert secret not in "".join(environment.values())
    standin._send_secret(secret, environment["FEDHEAD_OPERATOR_DOOR"])
    seen: dict[str, str | None] = {}

    def answer(request: httpx.Request) -> httpx.Response:
        seen[str(request.url)] = request.headers.get(SECRET_HEADER)
        return httpx.Response(200)

    for url in (
        "https://127.0.0.1:9093", "https://127.0.0.1:9092", "http://127.0.0.1:9093",
        "https://localhost:9093", "https://example.org:9093",
    ):  # fmt: skip
        with ProtobufClient(url) as client:
            client._client.close()
            client._client = httpx.Client(transport=httpx.MockTransport(answer))
            client._unary_unary(
                path="", rpc_method="", request=ActivateNodeRequest(),
                response_type=ActivateNodeRequest,
            )  # fmt: skip
    assert seen.pop("https://127.0.0.1:9093/") == secret
    assert len(seen) == 4
    assert set(seen.values()) == {None}


def test_the_operators_secret_is_its_owners_alone_and_never_replaced(tmp_path: Path) -> None:
    folder, other = tmp_path / "d", tmp_path / "other"
    for path in (folder, other):
        write_deployment(path, addresses=["localhost"], devices=["a"], days=1)
    file = folder / "server" / "operator.secret"
    secret = file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(bytes.fromhex(secret)) == 32
    assert secret != (other / "server" / "operator.secret").read_text()
    write_deployment(folder, addresses=["localhost"], devices=["b"], days=1)
    assert file.read_text() == secret
    for path in (folder / "devices").rglob("*"):
        assert path.is_dir() or secret.strip() not in path.read_text(), "it stays on the server"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_secret_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    write_deployment(tmp_path / "d", addresses=["localhost"], devices=["a"], days=1)
    (tmp_path / "d" / "server" / "operator.secret").chmod(mode)
    command = [sys.executable, "-m", "fedhead", "serve", str(tmp_path / "d" / "server")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert f"operator.secret: mode {mode:o} lets others read a secret" in " ".join(
        done.stderr.split()
    )


@pytest.mark.parametrize(
    "content", ["", "\n", " " * 64, "0123456789abcdef" * 2 + "\0", "0" * 31, "\xff" * 40]
)
def test_a_secret_that_can_be_guessed_opens_no_door(tmp_path: Path, content: str) -> None:
    write_deployment(tmp_path / "d", addresses=["localhost"], devices=["a"], days=1)
    file = tmp_path / "d" / "server" / "operator.secret"
    file.write_text(content)
    with pytest.raises(RunError) as error:
        superlink.main(tmp_path / "d" / "server")
    assert str(error.value).startswith(
        f"{file} is not a secret, expected 32 or more letters and digits"
    )
    file.write_text(" " + "0" * 32 + "\n")
    assert read_secret_file(file) == "0" * 32


@pytest.mark.parametrize("signs", [False, True])
def test_who_takes_part_and_who_signs_is_not_for_a_run_to_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signs: bool
) -> None:
    module = importlib.import_module("flwr.superlink.runtime.run_serverapp")
    for name in (
        "get_fab_metadata", "get_project_dir", "get_project_config", "run_", "install_from_fab",
        "get_fused_config_from_dir", "install_app_dependencies",
    ):  # fmt: skip
        monkeypatch.setattr(module, name, getattr(module, name))  # is put back
    server = tmp_path / "server"
    if signs:
        new_key(tmp_path / "signing.key", "")
        (server / "trusted").mkdir(parents=True)
        (tmp_path / "signing.key.pub").rename(server / "trusted" / "0.pub")
    serverapp.use_installed(server)
    ours = PYPROJECT.replace('"app"', '"fedhead"').replace("stranger", "fedhead")
    ours = ours.replace('"1.0"', f'"{installed_version()}"')
    signed = str(server / "backbones") if signs else ""
    expected = {"experiment": "y.toml", "deployment": str(server), "backbones": signed}
    for claim in ("", 'deployment = ""\nbackbones = ""', 'deployment = "/x"\nbackbones = "/y"'):
        module.install_from_fab(zipped(pyproject_toml=ours + claim), skip_prompt=True)
        overrides = {"experiment": "y.toml"} | ({"deployment": "/z"} if claim else {})
        config = module.get_fused_config_from_dir(tmp_path, overrides)
        assert config == expected


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        write_deployment(
            tmp_path / "d",
            addresses=["localhost"],
            devices=["a"],
            days=1,
            ports=Ports(operators=port),
        )
        command = [sys.executable, "-m", "fedhead", "serve", str(tmp_path / "d" / "server")]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    where = f"127.0.0.1:{port} (operator-port in server.toml)"
    assert line == f"fedhead: cannot listen on {where}: Address already in use"


def test_a_certificate_that_cannot_be_shown_is_one_line(tmp_path: Path) -> None:
    for name in ("d", "other"):
        write_deployment(tmp_path / name, addresses=["localhost"], devices=["a"], days=1)
    server = tmp_path / "d" / "server"
    (tmp_path / "other" / "server" / "server.key").rename(server / "server.key")
    command = [sys.executable, "-m", "fedhead", "serve", str(server)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"fedhead: {server / 'server.crt'} cannot be used: ")
    assert "serving" not in done.stdout
