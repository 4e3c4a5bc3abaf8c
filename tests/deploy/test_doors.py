"""Strangers at a real server's doors, and strangers' code: nothing is answered, nothing runs."""

from __future__ import annotations

import json
import sqlite3
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from fastapi.routing import iter_route_contexts
from flwr.proto.control_pb2 import RegisterNodeRequest, StartRunRequest
from flwr.proto.fab_pb2 import Fab
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufRequestContext
from flwr.superlink.main import create_app
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from simulations.deploy.launch import connection
from simulations.deploy.operator import SECRET_HEADER, control
from simulations.engines import flower
from simulations.engines.flower import command

if TYPE_CHECKING:
    from tests.deploy.conftest import Deployment

# A stranger's server: it sends each node a message of its own and waits for what they say.
SERVER = """
import time
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp
open({file!r} + ".server", "w").close()
app = ServerApp()

@app.main()
def main(grid, context):
    while not (nodes := list(grid.get_node_ids())):
        time.sleep(1)
    content = RecordDict({{"config": ConfigRecord({{"x": 1}})}})
    messages = [Message(content, node, "train") for node in nodes]
    with open({file!r} + ".server", "w") as file:
        for reply in grid.send_and_receive(messages, timeout=120):
            print(reply.error.reason if reply.has_error() else "NO ERROR", file=file)
"""
CLIENT = """
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
open({file!r} + ".client", "w").close()
app = ClientApp()

@app.train()
def train(message, context):
    return Message(RecordDict(), reply_to=message)
"""
PYPROJECT = """
[project]
name = "{name}"
version = "{version}"
[tool.flwr.app]
publisher = "{name}"
[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"
[tool.flwr.app.config]
"""


def hostile(folder: Path, file: Path) -> None:
    """Code under the names of ours that writes files as soon as it is imported."""
    for name, text in (("server", SERVER), ("client", CLIENT)):
        (folder / name).mkdir(parents=True)
        (folder / name / "app.py").write_text(text.format(file=str(file)))
        (folder / name / "__init__.py").touch()
    for name in ("common", "fedhead", "simulations"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(f"open({str(file)!r}, 'w').close()")
    (folder / "sitecustomize.py").write_text(f"open({str(file)!r}, 'w').close()")


def stranger(folder: Path, file: Path) -> Path:
    """A whole app of a stranger's."""
    hostile(folder, file)
    (folder / "pyproject.toml").write_text(PYPROJECT.format(name="stranger", version="6.6.6"))
    return folder


def state(server: Path) -> dict[str, list[Any]]:
    """All that the SuperLink remembers."""
    database = sqlite3.connect(f"file:{server / 'superlink.db'}?mode=ro", uri=True)
    names = "SELECT name FROM sqlite_master WHERE type = 'table'"
    tables = [name for (name,) in database.execute(names)]
    rows = {name: sorted(map(repr, database.execute(f"SELECT * FROM {name}"))) for name in tables}
    database.close()
    return rows


@dataclass(frozen=True)
class Routes:
    """What Flower's app, of whichever version, answers to."""

    devices: list[tuple[str, str]]
    others: list[tuple[str, str]]


@pytest.fixture(scope="module")
def routes() -> Routes:
    found = [
        (method, str(context.path))
        for context in iter_route_contexts(create_app().routes)
        for method in sorted(context.methods or ())
    ]
    devices = [route for route in found if route[1].startswith("/v1/fleet/")]
    return Routes(devices, [route for route in found if route not in devices])


def bodies() -> dict[str, bytes]:
    """Requests that would change something if they were let in."""
    key = public_key_to_bytes(generate_key_pairs()[1])
    return {
        "/v1/control/register-node": RegisterNodeRequest(public_key=key).SerializeToString(),
        "/v1/control/start-run": StartRunRequest(fab=Fab(content=b"x")).SerializeToString(),
    }


def spellings(path: str) -> Iterator[str]:
    """A path, and what a careless comparison takes for another or for the same."""
    yield path
    yield path + "/"
    yield "/" + path
    yield "/v1/fleet/.." + path.removeprefix("/v1")
    yield "/v1/fleet/%2e%2e" + path.removeprefix("/v1")
    yield path.replace("control", "%63ontrol").replace("runtime", "%72untime")


def signed(request: httpx.Request, device: Path) -> httpx.Request:
    """A request as a device's SuperNode signs it."""
    key = load_ssh_private_key((device / "device.key").read_bytes(), None)
    context = ProtobufRequestContext("", Fab(), request)
    interceptor = NodeAuthHttpInterceptor(key, key.public_key())  # type: ignore[arg-type, union-attr]
    interceptor.intercept(context, lambda _: httpx.Response(200))
    return request


def refusals(deployed: Deployment, routes: Routes, secret: str) -> list[tuple[str, int, int]]:
    """Whatever was not refused, of all that can be asked without being let in."""
    content, found = bodies(), []
    media = {"content-type": "application/protobuf"}
    outer, inner = (
        f"https://localhost:{deployed.port}",
        f"https://127.0.0.1:{deployed.operator_port}",
    )
    proofs: list[tuple[str, Mapping[str, str], bool]] = [
        (outer, {}, False), (outer, {}, True), (outer, {SECRET_HEADER: secret}, True),
        (inner, {}, False), (inner, {}, True), (inner, {SECRET_HEADER: secret[:-1] + "x"}, False),
    ]  # fmt: skip
    authority = ssl.create_default_context(cafile=deployed.folder / "server" / "ca.crt")
    with httpx.Client(verify=authority, timeout=60) as client:
        for base, headers, as_device in proofs:
            asked = [(m, p, f) for m, p in routes.others for f in spellings(p)]
            if not as_device:
                asked += [(m, p, p) for m, p in routes.devices]
            for method, path, form in asked:
                if form != path and (as_device or headers or base == inner):
                    continue
                # As it is spelt: httpx would make a proper path of it.
                request = client.build_request(
                    method,
                    base,
                    content=content.get(path, b""),
                    headers={**media, **headers},
                    extensions={"target": form.encode()},
                )
                if as_device:
                    request = signed(request, deployed.device("kitchen"))
                answer = client.send(request)
                expected = 401 if base == inner or path.startswith("/v1/fleet/") else 404
                if (answer.status_code, answer.content) != (expected, b""):
                    found.append((f"{method} {base}{form}", expected, answer.status_code))
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_strangers_find_no_door_and_their_code_runs_nowhere(
    deployment: Callable[..., Deployment],
    routes: Routes,
    tiny: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deployed = deployment("kitchen")
    server = deployed.folder / "server"
    deployed.start_server()
    secret = (server / "operator.secret").read_text().strip()
    assert secret not in command_lines()
    said = deployed.said("server")
    assert f"{deployed.port} over TLS, 1 registered" in said
    assert f"operators: 127.0.0.1:{deployed.operator_port}, from this machine" in said

    # No other user of the machine reads what the server keeps.
    written = [server, *server.glob("superlink.db*"), *(server / "flower").rglob("*")]
    assert len(written) > 1
    assert [path for path in written if path.stat().st_mode & 0o077] == []

    before = state(server)
    assert len(routes.others) > 50
    assert refusals(deployed, routes, secret) == []
    assert state(server) == before

    deployed.give_images("kitchen", 0)
    deployed.start_device("kitchen")
    wait_online(deployed)

    # A stranger's app, sent by who has the operator's secret.
    file = tmp_path / "written"
    app = stranger(tmp_path / "stranger", file)
    with connection(deployed.folder) as environment:
        assert secret not in "".join(environment.values())
        status, details = run(environment, app)
    assert status == "finished:failed"
    assert "the run asks for stranger/stranger 6.6.6, and only fedhead/fedhead" in details
    # The same code in a bundle that claims to be ours: ours runs, to the end.
    ours = flower._write_app

    def write_app(folder: Path, config: Mapping[str, str]) -> None:
        ours(folder, config)
        hostile(folder, file)

    impostor = tiny("train.rounds=1", "train.clients-per-round=1", name="impostor")
    with monkeypatch.context() as patch:
        patch.setattr(flower, "_write_app", write_app)
        assert deployed.run(impostor)["valid_updates"] == 1
    assert list(tmp_path.glob("written*")) == []

    # A server that is itself the stranger: a device takes nothing from it.
    deployed.processes["server"].terminate()
    deployed.processes["server"].wait(60)
    environment = deployed.start_plain_server()
    assert run(environment, app)[0] == "finished:completed"
    (written,) = tmp_path.glob("written*")
    assert written.name == "written.server"
    assert "the run asks for stranger/stranger 6.6.6" in written.read_text()


def wait_online(deployed: Deployment) -> None:
    deadline = time.monotonic() + 240
    with control(deployed.folder / "server") as api:
        while [node.status for node in api.nodes()] != ["online"]:
            assert time.monotonic() < deadline, deployed.said("kitchen")
            time.sleep(0.5)


def run(environment: Mapping[str, str], app: Path) -> tuple[str, str]:
    """Run an app to its end; status and details."""

    def flwr(*arguments: str) -> Any:
        done = subprocess.run(
            [command("flwr", environment), *arguments, "--format", "json"],
            env=environment,
            check=True,
            stdout=subprocess.PIPE,
        )
        return json.loads(done.stdout)

    sent, deadline = str(flwr("run", str(app))["run-id"]), time.monotonic() + 240
    while True:
        (found,) = (r for r in flwr("ls")["runs"] if str(r["run-id"]) == sent)
        if found["status"].startswith("finished"):
            return found["status"], found["status-details"]
        assert time.monotonic() < deadline, found
        time.sleep(1)


def command_lines() -> str:
    """What every user of the machine sees of all processes."""
    done = subprocess.run(["ps", "-e", "-o", "args"], capture_output=True, text=True, check=True)
    return done.stdout
