"""Flower's own simulation engine: ``flwr run`` on a SuperLink that lives as long as the run."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

import tomli_w

from common.bundle import NAME, PUBLISHER, installed_version
from common.errors import MissingExtraError, RunError
from simulations.deploy.processes import Process, running

__all__ = [
    "check_ray",
    "command",
    "flower_environment",
    "run_app",
    "run_flower",
    "superlink",
]

logger = logging.getLogger("fedhead")

_ROOT = Path(__file__).resolve().parent.parent
_START_SECONDS = 60.0
_STATUS_PAUSE_SECONDS = 1.0
_WARN_SECONDS, _GIVE_UP_SECONDS = 20.0, 90.0  # from a busy machine's start to none
_NOT_STARTED = ("pending", "starting")

# The shell leads the process group in which SuperLink, SuperExec, the ServerApp and Ray live.
# When the pipe to fedhead closes, for whatever reason, they all end: what a run must not lose
# is on disk, and a run that went on unseen would write into the folder that is resumed.
_KEEPER = """
"$1" --insecure --simulation --isolation process --host 127.0.0.1 --port "$3" &
"$2" --insecure --runtime-api-address "127.0.0.1:$3" --parent-pid $! &
read _
kill -s KILL -- -$$
"""

# What server/app writes into Flower's log, and Flower's name for an exception in it.
_OUR_LINE = re.compile(r"^fedhead (INFO|WARNING|ERROR): (.*)$")
_STARTED = re.compile(r"Successfully started run (\d+)")
_FAILURE = "Simulation failed with exception: "


def check_ray() -> None:
    """Make sure that Flower's simulation engine is installed.

    Raises:
        MissingExtraError: it is not.
    """
    if importlib.util.find_spec("ray") is None:
        raise MissingExtraError("ray", "flower", "Flower's simulation engine")


def run_flower(path: Path, *, num_supernodes: int, health: str = "") -> dict[str, Any]:
    """Run, or go on with, the experiment whose configuration lies in a run folder.

    Args:
        path: the run folder; Flower's whole log is added to its flower.log.
        num_supernodes: simulated nodes; Ray runs as many at a time as there are CPUs.
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
    backbones: Path | None = None,
) -> dict[str, Any]:
    """Run a run folder's experiment on the SuperLink that an environment names.

    Args:
        path: the run folder; Flower's whole log is added to its flower.log.
        environment: its FLWR_HOME is for this one run.
        options: of ``flwr run``.
        health: HOST:PORT where health checks are answered meanwhile; empty for none.
        backbones: folder of signed ones; None: the nodes take others.

    Returns:
        The run's closing figures.

    Raises:
        RunError: the run did not complete, with the reason it gave.
    """
    # It imports torch and what is a server's; what watches over a device stays without.
    from server.lease import held, lease_of
    from simulations.run import read_summary, run_values

    app, lease = Path(environment["FLWR_HOME"]) / "app", lease_of(path.resolve())
    signed = str(backbones.resolve()) if backbones else ""
    values = {"health": health, "lease": str(lease), "backbones": signed}
    _write_app(app, {**run_values(path.resolve()), **values})
    log = path / "flower.log"
    with held(lease):
        error, run_id = _stream(app, options, environment, log)
        try:
            status, details = _final_status(environment, run_id)
        except RunError as exc:
            raise RunError(f"{exc} (its log: {log}); {_go_on(path)}") from exc
    if status != "finished:completed":
        reason = f"Flower's run is {status}: {details} (its log: {log}); {_go_on(path)}"
        raise RunError(error or reason)
    return read_summary(path)


def _go_on(path: Path) -> str:
    from server.runfolder import resume_command

    return f"finished rounds are safe: once the SuperLink runs, {resume_command(path)}"


@contextmanager
def superlink() -> Iterator[dict[str, str]]:
    """Start a SuperLink for simulations; the user's own, and its settings, are not touched.

    Yields:
        The environment in which ``flwr`` commands talk to it.

    Raises:
        RunError: it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="fedhead-flower-", ignore_cleanup_errors=True) as home:
        port = _free_port()
        # Ten looks a second for something to start: here they cost little, on a device too much.
        quick = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1"}
        environment = quick | flower_environment() | {"FLWR_HOME": home}
        connection = {"address": f"127.0.0.1:{port}", "insecure": True}
        (Path(home) / "config.toml").write_text(
            tomli_w.dumps({"superlink": {"default": "fedhead", "fedhead": connection}})
        )
        names = ("flower-superlink", "flower-superexec")
        commands = [command(name, environment) for name in names]
        log = Path(home) / "superlink.log"
        with log.open("wb") as output:
            keeper = subprocess.Popen(  # noqa: S603 - our own script and Flower's commands
                ["/bin/sh", "-c", _KEEPER, "fedhead", *commands, str(port)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        try:
            try:
                _wait_for("127.0.0.1", port, keeper)
            except RunError as exc:
                raise RunError(f"{exc}: {_last_line(log)}") from exc
            yield environment
        finally:
            keeper.communicate()  # closes the pipe


def flower_environment() -> dict[str, str]:
    """Flower's processes stay offline, and find the same fedhead, cache and folder as this one."""
    old = dict(os.environ)
    search = [sysconfig.get_path("scripts"), old.get("PATH", os.defpath)]
    return {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ADDRESS": "local",
        **old,
        # It would put a second set of packages before the installed ones.
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PATH": os.pathsep.join(search),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), old.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
        "no_proxy": ",".join(filter(None, ["127.0.0.1", old.get("no_proxy", old.get("NO_PROXY"))])),
    }


def command(name: str, environment: Mapping[str, str]) -> str:
    """Path of one of Flower's commands.

    Raises:
        RunError: it is not installed.
    """
    found = shutil.which(name, path=environment["PATH"])
    if found is None:
        raise RunError(f"the command {name} of the package flwr is not on the PATH")
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(host: str, port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a SuperLink listens, which it does once it is ready.

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
    """A Flower app that consists of the installed fedhead and one experiment.

    Flower reads every file below an app's folder, 50,000 of them where a virtual environment
    lies in a checkout, and an installed fedhead has no such folder.
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


def _stream(
    app: Path, options: Sequence[str], environment: Mapping[str, str], log: Path
) -> tuple[str | None, str | None]:
    """Run the app to its end; our own lines of its log go to our log, all of them to a file.

    Returns:
        Our own last error, and the id that Flower gave the run; None: it gave none.
    """
    error = run_id = None
    arguments = ["flwr", "run", str(app), "--stream", *options]
    with (
        running(arguments, environment, subprocess.PIPE) as process,
        log.open("a", encoding="utf-8") as file,
    ):
        start = _Start(environment, process)
        try:
            for raw in process.stdout or ():
                line = raw.decode(errors="replace")
                file.write(line)
                file.flush()
                if match := _STARTED.search(line):
                    run_id = match[1]
                    start.watch(run_id)
                if match := _OUR_LINE.match(line):
                    level, message = match.groups()
                    if level == "ERROR":
                        error = message
                    else:
                        logger.log(logging.getLevelNamesMapping()[level], "%s", message)
        except KeyboardInterrupt:
            if run_id is not None:
                _flwr(environment, "stop", run_id)  # a deployment's would go on unseen
            raise
        finally:
            start.over.set()
    return start.error or error, run_id


class _Start:
    """Watches, in a thread, over the start of a run: Flower itself would wait for ever.

    Args:
        environment: of Flower's commands.
        stream: reads the run's log; is ended with the run that does not start.

    Attributes:
        over: whether nothing is to be watched any more.
        error: why the run was given up.
    """

    def __init__(self, environment: Mapping[str, str], stream: Process) -> None:
        self._environment, self._stream = environment, stream
        self.over, self.error = Event(), ""

    def watch(self, run_id: str) -> None:
        """Begin, now that Flower has taken the run."""
        Thread(target=self._watch, args=(run_id,), daemon=True).start()

    def _watch(self, run_id: str) -> None:
        waited = 0.0
        for until in (_WARN_SECONDS, _GIVE_UP_SECONDS):
            if self.over.wait(until - waited):
                return
            waited = until
            with suppress(RunError):
                status, _ = _status(self._environment, run_id)
                if status in _NOT_STARTED:
                    why = f"the server has not started the run within {until:g} s ({status})"
                    self._tell(f"{why}: do its SuperExec and its ServerApp start?", run_id, until)

    def _tell(self, why: str, run_id: str, waited: float) -> None:
        if waited < _GIVE_UP_SECONDS:
            logger.warning("%s", why)
            return
        self.error = why
        _flwr(self._environment, "stop", run_id)
        if self._stream.stdin:
            self._stream.stdin.close()  # the keeper ends it


def _final_status(environment: Mapping[str, str], run_id: str | None) -> tuple[str, str]:
    """Status and details of a run; ``flwr run --stream`` exits with 0 either way.

    Raises:
        RunError: there is no run, or no SuperLink any more.
    """
    while True:
        status, details = _status(environment, run_id)
        if status.startswith("finished"):
            return status, details.removeprefix(_FAILURE)
        time.sleep(_STATUS_PAUSE_SECONDS)  # the log's stream was cut


def _status(environment: Mapping[str, str], run_id: str | None) -> tuple[str, str]:
    """Status and details of a run.

    Raises:
        RunError: there is no run, or no SuperLink any more.
    """
    try:
        runs = json.loads(_flwr(environment, "ls"))["runs"]
        run = next(run for run in runs if str(run["run-id"]) == run_id)
    except (ValueError, LookupError, StopIteration) as exc:
        raise RunError("Flower's SuperLink does not answer, or has lost the run") from exc
    return str(run["status"]), str(run["status-details"])


def _flwr(environment: Mapping[str, str], *arguments: str) -> str:
    """What one of Flower's commands answers, as JSON if it could."""
    return subprocess.run(  # noqa: S603 - Flower's command
        [command("flwr", environment), *arguments, "--format", "json"],
        capture_output=True,
        env=dict(environment),
        text=True,
        check=False,
    ).stdout
