"""Flower's simulation: ``flwr run`` on a SuperLink that lives as long as the run."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import socket
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any

import tomli_w

from common.bundle import NAME, PUBLISHER, installed_version
from common.errors import MissingExtraError, RunError
from common.files import write_private
from simulations.deploy.processes import Process, command, own_folder, running
from simulations.deploy.standin import carrying, install
from simulations.engines.stream import final_status, stream

__all__ = [
    "check_ray",
    "command",
    "flower_environment",
    "run_app",
    "run_flower",
    "superlink",
]

logger = logging.getLogger("fedhead")

_ROOT = Path(__file__).resolve().parents[2]
_START_SECONDS = 60.0

# A run that went on unseen would write into a folder that is being resumed. So the keeper ends
# SuperLink, SuperExec, the ServerApp and Ray with it; what a run must not lose is on the disk.
_PROCESSES = """
"$2" -P -m simulations.engines.private_superlink "$3" \\
    --insecure --simulation --isolation process --host 127.0.0.1 --port "$1" &
exec flower-superexec --insecure --runtime-api-address "127.0.0.1:$1" --parent-pid $!
"""


def check_ray() -> None:
    """Check that Flower's simulation is installed.

    Raises:
        MissingExtraError: it is not.
    """
    if importlib.util.find_spec("ray") is None:
        raise MissingExtraError("ray", "flower", "Flower's simulation")


def run_flower(path: Path, *, num_supernodes: int, health: str = "") -> dict[str, Any]:
    """Run or resume the experiment of a run folder.

    Args:
        path: the run folder; Flower's whole log is added to its flower.log.
        num_supernodes: number of simulated nodes; Ray runs one per CPU at a time.
        health: HOST:PORT where health checks are answered meanwhile; empty for none.

    Returns:
        The run's closing figures.

    Raises:
        MissingExtraError: Ray is not installed.
        RunError: the run did not complete, with the reason it gave.
    """
    check_ray()
    with superlink() as environment:
        federation = f"num-supernodes={num_supernodes} client-resources-num-cpus=1"
        options = ["--federation-config", federation]
        return run_app(path, environment, options, health=health)


def run_app(
    path: Path,
    environment: Mapping[str, str],
    options: Sequence[str] = (),
    *,
    health: str = "",
) -> dict[str, Any]:
    """Run a run folder's experiment on the SuperLink that an environment names.

    Args:
        path: the run folder; Flower's whole log is added to its flower.log.
        environment: the environment; its FLWR_HOME is for this run only.
        options: options of ``flwr run``.
        health: HOST:PORT where health checks are answered meanwhile; empty for none.

    Returns:
        The run's closing figures.

    Raises:
        RunError: the run did not complete, with the reason it gave.
    """
    # Imported here: it imports torch and server packages, which a device's processes do without.
    from server.record.lease import held, lease_of
    from simulations.run import read_summary, run_values

    app, lease = Path(environment["FLWR_HOME"]) / "app", lease_of(path.resolve())
    values = {"health": health, "lease": str(lease)}
    _write_app(app, {**run_values(path.resolve()), **values})
    log = path / "flower.log"
    with held(lease):
        error, run_id = stream(app, options, environment, log)
        try:
            status, details = final_status(environment, run_id)
        except RunError as exc:
            raise RunError(f"{exc} (its log: {log}); {_go_on(path)}") from exc
    if status != "finished:completed":
        reason = f"Flower's run is {status}: {details} (its log: {log}); {_go_on(path)}"
        raise RunError(error or reason)
    return read_summary(path)


def _go_on(path: Path) -> str:
    from server.record.runfolder import resume_command

    return f"finished rounds are kept; once the SuperLink runs: {resume_command(path)}"


@contextmanager
def superlink() -> Iterator[dict[str, str]]:
    """Start a SuperLink for simulations, without touching the user's own SuperLink or settings.

    Yields:
        The environment in which ``flwr`` commands reach it.

    Raises:
        RunError: it does not start.
    """
    with own_folder("flower") as home:
        port = _free_port()
        # Look for work ten times a second: cheap here, but too costly on a device.
        quick = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1"}
        environment = quick | flower_environment() | {"FLWR_HOME": str(home)}
        connection = {"address": f"127.0.0.1:{port}", "insecure": True}
        (home / "config.toml").write_text(
            tomli_w.dumps({"superlink": {"default": "fedhead", "fedhead": connection}})
        )
        command("flower-superexec", environment)  # checked here for a clear error
        secret, own = home / "secret", home / "bin"
        write_private(secret, token_hex(32).encode())
        own.mkdir()
        names = ("flower-superexec", "flwr-simulation", "flwr")
        environment["PATH"] = install(own, environment["PATH"], names)
        environment |= carrying(secret, f"http://127.0.0.1:{port}")
        log = home / "superlink.log"
        arguments = ["sh", "-c", _PROCESSES, "fedhead", str(port), sys.executable, str(secret)]
        with log.open("wb") as output, running(arguments, environment, output) as process:
            try:
                _wait_for("127.0.0.1", port, process)
            except RunError as exc:
                raise RunError(f"{exc}: {_last_line(log)}") from exc
            yield environment


def flower_environment() -> dict[str, str]:
    """An environment in which Flower's processes are offline and use this fedhead and cache."""
    old = dict(os.environ)
    search = [sysconfig.get_path("scripts"), old.get("PATH", os.defpath)]
    return {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ADDRESS": "local",
        **old,
        # This variable would put other packages before the installed ones.
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PATH": os.pathsep.join(search),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), old.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
        "no_proxy": ",".join(filter(None, ["127.0.0.1", old.get("no_proxy", old.get("NO_PROXY"))])),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(host: str, port: int, process: Process) -> None:
    """Wait until a SuperLink listens, because then it is ready.

    Raises:
        RunError: it ends, or does not start in time.
    """
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection((host, port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    if process.poll() is None:
        raise RunError(f"Flower's SuperLink did not start within {_START_SECONDS:g} s")
    raise RunError("Flower's SuperLink ended before it was ready")


def _last_line(log: Path) -> str:
    lines = [line.strip("│ ") for line in log.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if re.search(r"\w", line)), "it wrote no log")


def _write_app(folder: Path, config: Mapping[str, str]) -> None:
    """Write a Flower app that refers to the installed fedhead and one experiment.

    A folder of its own is needed: Flower reads every file below an app's folder, which are 50,000
    if a checkout holds a virtual environment, and an installed fedhead has no app folder.
    """
    app = {
        "publisher": PUBLISHER,
        "components": {"serverapp": "server.app:app", "clientapp": "client.app:app"},
        "config": dict(config),
    }
    project = {"name": NAME, "version": installed_version()}
    folder.mkdir()
    content = tomli_w.dumps({"project": project, "tool": {"flwr": {"app": app}}})
    (folder / "pyproject.toml").write_text(content)
