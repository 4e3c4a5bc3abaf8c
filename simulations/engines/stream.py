"""Runs a Flower run from start to end: shows its log as it arrives and returns its outcome."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread

from common.errors import RunError
from simulations.deploy.processes import Process, command, running

__all__ = ["final_status", "stream"]

logger = logging.getLogger("fedhead")

_STATUS_PAUSE_SECONDS = 1.0
_WARN_SECONDS, _GIVE_UP_SECONDS = 20.0, 90.0  # first maybe only a busy machine, then a failure
_NOT_STARTED = ("pending", "starting")

# Our lines in Flower's log, which server/app writes, and Flower's text for an exception.
_OUR_LINE = re.compile(r"^fedhead (INFO|WARNING|ERROR): (.*)$")
_STARTED = re.compile(r"Successfully started run (\d+)")
_FAILURE = "Simulation failed with exception: "


def stream(
    app: Path, options: Sequence[str], environment: Mapping[str, str], log: Path
) -> tuple[str | None, str | None]:
    """Run the app to its end. Our lines in its log go to our log, and all lines to a file.

    Returns:
        Our last error, and Flower's id of the run; None: there is none.
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
                _flwr(environment, "stop", run_id)  # on a deployment it would go on unseen
            raise
        finally:
            start.over.set()
    return start.error or error, run_id


class _Start:
    """Watches the start of a run in a thread, because Flower itself would wait for ever.

    Args:
        environment: the environment of Flower's commands.
        stream: the process that reads the run's log; it is ended if the run does not start.

    Attributes:
        over: set when watching is finished.
        error: the reason why the run was given up.
    """

    def __init__(self, environment: Mapping[str, str], stream: Process) -> None:
        self._environment, self._stream = environment, stream
        self.over, self.error = Event(), ""

    def watch(self, run_id: str) -> None:
        """Begin to watch, once Flower has accepted the run."""
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


def final_status(environment: Mapping[str, str], run_id: str | None) -> tuple[str, str]:
    """Status and details of a run; ``flwr run --stream`` exits with 0 either way.

    Raises:
        RunError: there is no run, or no SuperLink any more.
    """
    while True:
        status, details = _status(environment, run_id)
        if status.startswith("finished"):
            return status, details.removeprefix(_FAILURE)
        time.sleep(_STATUS_PAUSE_SECONDS)  # the log's stream ended early


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
    """The output of one of Flower's commands, in JSON if the command has that."""
    return subprocess.run(  # noqa: S603 - Flower's command
        [command("flwr", environment), *arguments, "--format", "json"],
        capture_output=True,
        env=dict(environment),
        text=True,
        check=False,
    ).stdout
