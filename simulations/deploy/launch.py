"""Flower's SuperLink and SuperNode, started from a deployment's folders.

Thin on purpose: the command is printed, so that it can be used, and read about, without fedhead.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import tomli_w

from common.errors import RunError
from common.files import write_atomic
from simulations.deploy.certificates import first_address
from simulations.deploy.handshake import obstacle
from simulations.deploy.processes import Process, alone, first_end, run, running, terminable
from simulations.deploy.register import RECORD_SEPARATOR
from simulations.deploy.settings import endpoint, inside, read_device, read_server
from simulations.flower import flower_environment, run_app, wait_for

__all__ = [
    "connection",
    "device_command",
    "run_deployed",
    "run_device",
    "serve",
    "superlink_command",
]

Say = Callable[[str], None]

_FIRST_PAUSE_SECONDS = 2.0
_LONGEST_PAUSE_SECONDS = 60.0
_LONGEST_SOCKET = 100  # bytes of its path: Linux allows 107, others 103


def superlink_command(server: Path) -> list[str]:
    """Flower's command for a server's folder."""
    settings = read_server(server)
    return [
        "flower-superlink",
        "--ssl-certfile", _there(server / "server.crt"),
        "--ssl-keyfile", _there(server / "server.key"),
        "--ssl-ca-certfile", _there(server / "ca.crt"),
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
        "--database", str(server / "superlink.db"),
        "--host", settings.host,
        "--port", str(settings.port),
    ]  # fmt: skip


def device_command(device: Path, own: Path) -> list[str]:
    """The command of a device's SuperNode: Flower's, behind a socket in a folder of its own."""
    settings = read_device(device)
    node_config = {
        "data": f"folder:{inside(device, settings.data)}",
        "state": str(inside(device, settings.state)),
        "max-examples": settings.max_examples,
        "max-threads": settings.max_threads,
        "min-interval-seconds": settings.min_interval_seconds,
        "allow": settings.allow,
    }
    pairs = [f"{key}={json.dumps(value)}" for key, value in node_config.items()]
    return [
        sys.executable, "-P", "-m", "client.supernode", _socket(own), str(own / "refused"),
        "--superlink", settings.server,
        "--root-certificates", _there(device / "ca.crt"),
        "--auth-supernode-private-key", _there(device / "device.key"),
        "--node-config", " ".join(pairs),
    ]  # fmt: skip


def serve(server: Path, say: Say) -> int:
    """Run a SuperLink until it ends, with the devices' keys registered.

    Args:
        server: the deployment's server folder.
        say: gets the lines for the person who started it.

    Returns:
        The exit code of a SuperLink that ended by itself.

    Raises:
        ConfigError, RunError: a file is missing or wrong, or the SuperLink does not start.
        KeyboardInterrupt: somebody ended it.
    """
    server = server.resolve()
    settings = read_server(server)
    environment = flower_environment() | {"FLWR_HOME": str(server / "flower")}

    with terminable(), alone(server, "fedhead serve"), connection(server.parent) as home:

        def register(process: subprocess.Popen[bytes]) -> None:
            local = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - all addresses
            wait_for(local.get(settings.host, settings.host), settings.port, process)
            keys = sorted((server / "devices").glob("*.pub"))
            for name, client in _register(keys, environment | {"FLWR_HOME": str(home)}):
                say(f"device {name} is client {client}")
            say(f"serving at port {settings.port}; end with Ctrl-C")

        return run(superlink_command(server), environment, say, register)


def run_device(device: Path, say: Say) -> NoReturn:
    """Run a SuperNode until somebody ends it.

    Flower's connects again by itself once it was let in, but gives up where it is not: before its
    key is registered, or while the server has no valid certificate.

    Raises:
        ConfigError, RunError: a file is missing or wrong, or the device runs already.
        KeyboardInterrupt: somebody ended it.
    """
    device = device.resolve()
    settings = read_device(device)
    environment = flower_environment() | {
        "FLWR_HOME": str(inside(device, settings.state) / "flower"),
        "OMP_NUM_THREADS": str(settings.max_threads),
    }
    own_folder = tempfile.TemporaryDirectory(prefix="fedhead-device-", ignore_cleanup_errors=True)
    with terminable(), alone(device, "fedhead device"), own_folder as name:
        own, pause = Path(name), _FIRST_PAUSE_SECONDS
        answers = [sys.executable, "-P", "-m", "client.fork_server", _socket(own)]
        while True:
            # It imports while the SuperNode starts, and once, however often that is refused.
            with running(answers, environment) as answering:
                while answering.poll() is None:
                    started = time.monotonic()
                    code = _run_node(device_command(device, own), environment, say, answering)
                    if time.monotonic() - started > _LONGEST_PAUSE_SECONDS:
                        pause = _FIRST_PAUSE_SECONDS  # it had been let in
                    why = obstacle(settings.server, device / "ca.crt", _refused(own))
                    if answering.poll() is not None:
                        why = f"what answers its messages has ended with {answering.returncode}"
                    say(f"Flower's SuperNode ended with {code}: {why}. Again in {pause:g} s.")
                    time.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def _run_node(
    arguments: Sequence[str], environment: Mapping[str, str], say: Say, answering: Process
) -> int:
    """Run a SuperNode until it ends, or nobody answers its messages any more."""
    say(f"$ {shlex.join(arguments)}")
    with running(arguments, environment) as node:
        first_end(node, answering)
    return node.wait()


def _socket(own: Path) -> str:
    """Where a device's processes meet: in a folder that only their owner may enter.

    Raises:
        RunError: the system's temporary folder has too long a name.
    """
    path = str(own / "socket")
    if len(path.encode()) > _LONGEST_SOCKET:
        raise RunError(f"{path} is too long for a socket: set TMPDIR to a folder with a short name")
    return path


def _refused(own: Path) -> str:
    """What Flower said when the server did not let the device in; empty: it said nothing."""
    file = own / "refused"
    said = file.read_text() if file.exists() else ""
    file.unlink(missing_ok=True)
    return said


def run_deployed(path: Path, deployment: Path, *, health: str = "") -> dict[str, Any]:
    """Run, or go on with, a run folder's experiment on a deployment's devices.

    Args:
        path: the run folder.
        deployment: the folder that ``fedhead deploy`` wrote.
        health: HOST:PORT where health checks are answered meanwhile; empty for none.

    Returns:
        The run's closing figures.

    Raises:
        ConfigError, RunError: no deployment, or the run did not complete, with the reason.
    """
    # What watches over a device stays without torch and without the server's packages.
    from server.runfolder import RunFolder
    from simulations.run import open_run

    RunFolder(path, open_run(path)).bind_clients(simulated=False)
    with connection(deployment) as home:
        environment = flower_environment() | {"FLWR_HOME": str(home)}
        return run_app(path, environment, health=health)


@contextmanager
def connection(deployment: Path) -> Iterator[Path]:
    """A temporary FLWR_HOME in which ``flwr`` commands reach a deployment's SuperLink."""
    server = deployment / "server"
    address = first_address(server / "server.crt")
    link = {
        "address": endpoint(address, read_server(server).port),
        "root-certificates": str((server / "ca.crt").resolve()),
    }
    with tempfile.TemporaryDirectory(prefix="fedhead-flower-", ignore_cleanup_errors=True) as home:
        content = {"superlink": {"default": "fedhead", "fedhead": link}}
        (Path(home) / "config.toml").write_text(tomli_w.dumps(content))
        yield Path(home)


def _there(path: Path) -> str:
    if not path.is_file():
        raise RunError(f"{path} is missing: fedhead deploy writes it")
    return str(path)


def _register(keys: Sequence[Path], environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Let the devices with these public keys in; each one's name, and what a run's logs call it.

    Raises:
        RunError: the first that Flower refuses, with its reason; those before it are let in.
    """
    done = 0
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-P", "-m", "simulations.deploy.register", *map(str, keys)],
            env=dict(environment),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        said: list[str] = []
        for line in process.stdout or ():
            if line == f"{RECORD_SEPARATOR}\n":
                yield keys[done].stem, _client(keys[done], "".join(said))
                said, done = [], done + 1
            else:
                said.append(line)
        if done < len(keys):
            errors.seek(0)
            said.append(errors.read().decode(errors="replace"))
            text = " ".join(" ".join(said).split())
            raise RunError(f"{keys[done]}: cannot be registered: {text[:300]}")


def _client(key: Path, said: str) -> str:
    """A device's id, from what Flower said: it tells it once, so it is kept beside the key."""
    file = key.with_suffix(".client")
    if "already in use" in said:
        return file.read_text() if file.exists() else "known"
    try:
        node = int(json.loads(said)["node-id"])
    except (ValueError, KeyError) as exc:
        raise RunError(f"{key}: cannot be registered: {' '.join(said.split())[:300]}") from exc
    client = str(node % 2**63)  # as client/device has it
    write_atomic(file, client.encode())
    return client
