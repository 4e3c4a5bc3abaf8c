"""Flower's SuperLink and SuperNode, started from a deployment's folders.

Thin on purpose: the command is printed, so that it can be used, and read about, without fedhead.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import tomli_w

from client import fork_server
from common.errors import RunError
from common.files import write_atomic
from simulations.deploy.certificates import first_address
from simulations.deploy.handshake import obstacle
from simulations.deploy.register import RECORD_SEPARATOR
from simulations.deploy.settings import endpoint, inside, read_device, read_server
from simulations.deploy.trust import signing_state, trusted_of
from simulations.flower import command, flower_environment, run_app, wait_for

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


def device_command(device: Path) -> list[str]:
    """Flower's command for a device's folder."""
    settings = read_device(device)
    node_config = {
        "data": f"folder:{inside(device, settings.data)}",
        "state": str(inside(device, settings.state)),
        "max-examples": settings.max_examples,
        "max-threads": settings.max_threads,
        "min-interval-seconds": settings.min_interval_seconds,
        "allow": settings.allow,
    }
    if signing_state(device).keys:
        node_config["trusted"] = str(trusted_of(device))
    pairs = [f"{key}={json.dumps(value)}" for key, value in node_config.items()]
    return [
        "flower-supernode",
        "--superlink", settings.server,
        "--root-certificates", _there(device / "ca.crt"),
        "--auth-supernode-private-key", _there(device / "device.key"),
        "--port", str(settings.port),
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
    signing = signing_state(server)
    environment = flower_environment() | {"FLWR_HOME": str(server / "flower")}

    with _terminable(), connection(server.parent) as home:

        def register(process: subprocess.Popen[bytes]) -> None:
            local = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - all addresses
            wait_for(local.get(settings.host, settings.host), settings.port, process)
            keys = sorted((server / "devices").glob("*.pub"))
            for name, client in _register(keys, environment | {"FLWR_HOME": str(home)}):
                say(f"device {name} is client {client}")
            say(str(signing))
            say(f"serving at port {settings.port}; end with Ctrl-C")

        return _run(superlink_command(server), environment, say, register)


def run_device(device: Path, say: Say) -> NoReturn:
    """Run a SuperNode until somebody ends it.

    Flower's connects again by itself once it was let in, but gives up where it is not: before its
    key is registered, or while the server has no valid certificate.

    Raises:
        ConfigError, RunError: a file is missing or wrong.
        KeyboardInterrupt: somebody ended it.
    """
    device = device.resolve()
    settings = read_device(device)
    environment = flower_environment() | {
        "FLWR_HOME": str(inside(device, settings.state) / "flower"),
        "OMP_NUM_THREADS": str(settings.max_threads),
    }
    pause = _FIRST_PAUSE_SECONDS
    own_folder = tempfile.TemporaryDirectory(prefix="fedhead-device-", ignore_cleanup_errors=True)
    with _terminable(), own_folder as own:
        environment["PATH"] = fork_server.install(Path(own), environment["PATH"])
        while True:
            # It imports while the SuperNode starts, and once, however often that is refused.
            with _running(["flwr-clientapp"], environment) as imported:
                while True:
                    started = time.monotonic()
                    code = _run(device_command(device), environment, say)
                    if time.monotonic() - started > _LONGEST_PAUSE_SECONDS:
                        pause = _FIRST_PAUSE_SECONDS  # it had been let in
                    why = obstacle(settings.server, device / "ca.crt")
                    say(f"Flower's SuperNode ended with {code}: {why}. Again in {pause:g} s.")
                    time.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
                    if imported.poll() is not None:
                        break


def run_deployed(
    path: Path, deployment: Path, *, health: str = "", key: Path | None = None
) -> dict[str, Any]:
    """Run, or go on with, a run folder's experiment on a deployment's devices.

    Args:
        path: the run folder.
        deployment: the folder that ``fedhead deploy`` wrote.
        health: HOST:PORT where health checks are answered meanwhile; empty for none.
        key: signs the backbone, where that is not signed yet; None: nothing is signed.

    Returns:
        The run's closing figures.

    Raises:
        SignatureError: the devices take signed backbones only, and the run's is not.
        ConfigError, RunError: no deployment, or the run did not complete, with the reason.
    """
    # What watches over a device stays without torch and without the server's packages.
    from server.runfolder import RunFolder
    from simulations.run import open_run
    from simulations.signing import signed_backbones

    config = open_run(path)
    RunFolder(path, config).bind_clients(simulated=False)
    backbones = signed_backbones(config, deployment / "server", key)
    with connection(deployment) as home:
        environment = flower_environment() | {"FLWR_HOME": str(home)}
        return run_app(path, environment, health=health, backbones=backbones)


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


def _run(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    say: Say,
    ready: Callable[[subprocess.Popen[bytes]], None] = lambda _: None,
) -> int:
    """Run a process of Flower's to its end, or to ours: an interrupt ends it and is raised."""
    say(f"$ {shlex.join(arguments)}")
    with _running(arguments, environment) as process:
        ready(process)
        return process.wait()


@contextmanager
def _running(
    arguments: Sequence[str], environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """A process of Flower's, and those it starts, until the block's end."""
    with (
        subprocess.Popen(  # noqa: S603 - Flower's own command
            [command(arguments[0], environment), *arguments[1:]],
            env=dict(environment),
            start_new_session=True,
        ) as process
    ):
        try:
            yield process
        finally:
            _end(process)


@contextmanager
def _terminable() -> Iterator[None]:
    """Inside, SIGTERM is an interrupt as Ctrl-C is: processes and folders are cleaned up."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, and with it those that it started."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


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
