"""Messages through Flower's own Runtime API to the installed app, whatever the bundle holds."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import httpx
import psutil
import pytest
import uvicorn
from flwr.app import Context, Message, RecordDict
from flwr.cli.build import build_fab_from_files
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeStateFactory
from flwr.supernode.runtime import run_clientapp
from flwr.supernode.start_client_internal import _insert_message

from client import fork_server
from client.supernode import flowers
from common.bundle import installed_version
from common.messages import BackboneRequest

# flwr builds bundles with what pathspec would rather have otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

ROOT = Path(__file__).parent.parent.parent
NODE, OURS = 7, ("fedhead/fedhead", installed_version())


class SuperNode:
    """Flower's Runtime API on a socket, with a device's process for messages.

    Args:
        folder: for the socket, the device's state and what a bundle's code would write.
        start: the process's Python.
        app: the module with the app; empty: a device's.
        config: the node's configuration; None: a device's.
    """

    def __init__(
        self, folder: Path, start: str = "", app: str = "", config: dict[str, Any] | None = None
    ) -> None:
        device = {"data": f"folder:{folder}", "state": str(folder / "state")}
        self.config = device if config is None else config
        self.folder, self.stolen = folder, folder / "stolen"
        self.socket, self.log = folder / "socket", folder / "log"
        states = NodeStateFactory(objectstore_factory=(stores := ObjectStoreFactory()))
        self.state, self.store = states.state(), stores.store()
        self.state.set_node_id(NODE)
        config = uvicorn.Config(create_app(states), uds=str(self.socket), ws="none")
        self.server = uvicorn.Server(config)
        threading.Thread(target=self.server.run, daemon=True).start()
        options = ["--app", app] if app else []
        self.start(["-c", start] if start else ["-m", "client.fork_server", *options])

    def start(self, python: list[str]) -> None:
        environment = dict(os.environ) | {
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "FLWR_HOME": str(self.folder / "flower"),
            "OMP_NUM_THREADS": "1",
        }
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-P", *python, str(self.socket)],
                env=environment, cwd=self.folder, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def send(self, app: tuple[str, str], kind: TaskType = TaskType.CLIENT_APP) -> None:
        """A message of a run that claims this app and version, and brings a stranger's code."""
        run_id = len(self.state.run_store) + 1  # type: ignore[attr-defined]
        bundle = self.bundle(app)
        fab = Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})
        name, version = app
        run = Run.create_empty(run_id)
        run.fab_id, run.fab_version, run.fab_hash, run.series_id = (
            name,
            version,
            fab.hash_str,
            run_id,
        )
        context = Context(run_id, NODE, self.config, RecordDict(), {})
        context.series_id = run_id
        message = Message(BackboneRequest("f" * 64).write(), NODE, "query.backbone")
        message.metadata.__dict__.update(_run_id=run_id, _src_node_id=1)
        self.state.set_run_series_context(run_id, context)
        self.state.store_run(run)
        self.state.store_fab(fab)
        _insert_message(message, self.state, self.store)
        self.state.create_task(task_type=kind, run_id=run_id, fab_hash=fab.hash_str)

    def bundle(self, app: tuple[str, str]) -> bytes:
        """Code that writes a file, in every place where Flower would import it."""
        evil = f"from pathlib import Path\nPath({str(self.stolen)!r}).touch()\napp = None\n"
        publisher, name = app[0].split("/")
        project = f"""
[project]
name = "{name}"
version = "{app[1]}"
[tool.flwr.app]
publisher = "{publisher}"
[tool.flwr.app.components]
clientapp = "client.app:app"
serverapp = "server.app:app"
"""
        modules = ("client/app.py", "client/__init__.py", "server/app.py", "torch.py")
        files = {"pyproject.toml": project.encode()} | dict.fromkeys(modules, evil.encode())
        return build_fab_from_files(files)[0]

    def answer(self, seconds: float = 120) -> Message:
        found: list[Message] = []
        deadline = time.monotonic() + seconds
        while not found:
            assert time.monotonic() < deadline, self.log.read_text()
            assert self.process.poll() is None, self.log.read_text()
            found = list(self.state.get_messages_legacy(is_reply=True))
            time.sleep(0.1)
        return found[0]

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.server.should_exit = True


@pytest.fixture
def start(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., SuperNode]]:
    started: list[SuperNode] = []
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)  # Flower asks for it to make a message

    def make(*options: str, **more: Any) -> SuperNode:
        started.append(SuperNode(tmp_path_factory.mktemp("n"), *options, **more))
        return started[-1]

    yield make
    for node in started:
        node.end()


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_only_the_installed_app_answers_in_a_process_of_its_own(
    start: Callable[..., SuperNode],
) -> None:
    node = start()
    # The bundle claims to be ours: its code is ignored, the installed app answers.
    node.send(OURS)
    assert not node.answer().has_error(), node.log.read_text()
    first = node.log.read_text()

    for app in (("stranger/evil", "1.0.0"), (OURS[0], "0.0.1")):
        node.send(app)
        reply = node.answer()
        assert reply.has_error()
        declined = f"declined: the run asks for {app[0]} {app[1]}, "
        assert declined in (reply.error.reason or "")
        said = [line for line in node.log.read_text()[len(first) :].splitlines() if app[0] in line]
        assert len([line for line in said if declined in line and app[1] in line]) == 1
    assert "Traceback" not in node.log.read_text()

    node.send(OURS, TaskType.AGENT_APP)  # Flower's command for these runs what the bundle holds
    assert not node.answer().has_error(), node.log.read_text()

    assert not node.stolen.exists()
    assert not list(node.folder.rglob("*.toml")), "no bundle was unpacked"
    assert not list((node.folder / "flower").rglob("*.py"))

    # One that crashes takes nothing along.
    os.kill(node.process.pid, 0)
    node.send(OURS)
    wait_until(lambda: bool(psutil.Process(node.process.pid).children()))
    for child in psutil.Process(node.process.pid).children():
        assert "--token" not in child.cmdline()
        child.kill()
    node.send(OURS)
    assert node.answer().metadata.run_id
    assert node.process.poll() is None


FLOWERS_WAY = """
import sys
from pathlib import Path
import client.fork_server as server
import flwr.supernode.runtime.run_clientapp as flowers
flowers.RuntimeHttpClient = server.SocketClient
server._load = lambda _: flowers.run_clientapp
server.serve(Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_flowers_own_way_would_run_the_same_bundles_code(start: Callable[..., SuperNode]) -> None:
    node = start(FLOWERS_WAY)
    node.send(("stranger/evil", "1.0.0"))
    node.answer()
    assert node.stolen.exists()


IDLE = """
import sys
from pathlib import Path
import client.fork_server as server
server._IDLE_SECONDS = 3
server.serve(Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_an_idle_device_has_its_memory_back_and_answers_still(
    start: Callable[..., SuperNode],
) -> None:
    node = start(IDLE)
    node.send(OURS)
    assert not node.answer().has_error()
    process = psutil.Process(node.process.pid)
    wait_until(lambda: "--idle" in process.cmdline())
    wait_until(lambda: node.log.exists() and "torch" not in maps(process), 20)
    node.send(OURS)
    assert not node.answer().has_error()
    assert "torch" in maps(process)


def maps(process: psutil.Process) -> str:
    return Path(f"/proc/{process.pid}/maps").read_text()


@pytest.mark.slow
def test_it_ends_with_what_started_it(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys\n"
        "server = [sys.executable, '-m', 'client.fork_server', sys.argv[1], '--idle']\n"
        "p = subprocess.Popen(server)\n"
        "print(p.pid, flush=True)\ninput()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "none")],
        env=dict(os.environ) | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as parent:  # fmt: skip
        assert parent.stdout
        server = psutil.Process(int(parent.stdout.readline()))
        time.sleep(5)
        assert server.is_running(), "it waits for a SuperNode that is not there yet"
        parent.kill()
    wait_until(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE)


def test_a_supernode_that_answers_an_error_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    request = httpx.Request("POST", "http://supernode")
    failures: list[Exception] = [
        httpx.HTTPStatusError("", request=request, response=httpx.Response(status))
        for status in (401, 500, 503)
    ]
    failures += [httpx.ConnectError(""), httpx.RemoteProtocolError("")]
    left = list(failures)

    class Failing:
        def __init__(self, _: str) -> None: ...

        def AcquireTask(self, _: object) -> NoReturn:  # noqa: N802 - Flower's
            raise left.pop()

    monkeypatch.setattr(fork_server, "SocketClient", Failing)
    monkeypatch.setattr(fork_server, "_POLL_SECONDS", 0)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    parents = iter([1] * (1 + len(failures)))
    monkeypatch.setattr("os.getppid", lambda: next(parents, 2))
    with pytest.raises(SystemExit):
        fork_server.serve(Path("none"), idle=True)
    assert not left


@pytest.mark.parametrize(
    "name",
    [
        "run_clientapp", "RuntimeHttpClient", "pull_task_input", "install_from_fab",
        "get_project_dir", "install_app_dependencies", "get_load_client_app_fn",
    ],
)  # fmt: skip
def test_a_flower_that_loads_code_elsewhere_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(run_clientapp, name)
    before = dict(vars(run_clientapp))
    with pytest.raises(
        SystemExit, match=f"does not start with this version of flwr: .* has no {name}"
    ):
        fork_server._load()
    assert dict(vars(run_clientapp)) == before


def test_a_flower_that_serves_its_api_elsewhere_is_refused() -> None:
    with pytest.raises(SystemExit, match="flwr.supernode.cli.flower_supernode has no moved"):
        flowers("flwr.supernode.cli.flower_supernode", "uvicorn", "moved")


def test_a_bundles_code_never_reaches_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    names = (
        "RuntimeHttpClient", "pull_task_input", "install_from_fab", "get_project_dir",
        "install_app_dependencies", "get_load_client_app_fn",
    )  # fmt: skip
    for name in names:
        monkeypatch.setattr(run_clientapp, name, getattr(run_clientapp, name))  # is put back
    fab = Fab("hash", b"code", {})
    monkeypatch.setattr(
        run_clientapp, "pull_task_input", lambda _: ("message", "context", "run", fab)
    )
    monkeypatch.setattr("gc.freeze", lambda: None)
    fork_server._load()
    *_, seen = run_clientapp.pull_task_input(None)  # type: ignore[arg-type]
    assert seen == dataclasses.replace(fab, content=b"")
    assert run_clientapp.install_from_fab(b"code", skip_prompt=True) is None
    with pytest.raises(Exception, match="installs nothing"):
        run_clientapp.install_app_dependencies()  # type: ignore[call-arg]
