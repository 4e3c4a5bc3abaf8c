"""Processes that end together with the process that started them, however that ends.

Each command is started through ``keeper``, which holds one end of a pipe. When this process is
gone, even by SIGKILL, the pipe closes, and the keeper ends the command and all that it started.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Protocol

from common.errors import RunError

__all__ = [
    "Polled",
    "Process",
    "alone",
    "command",
    "first_end",
    "is_held",
    "own_folder",
    "run",
    "running",
    "socket_in",
    "terminable",
]

Process = subprocess.Popen[bytes]


class Polled(Protocol):
    """A process, or something that ends like one."""

    def poll(self) -> int | None:
        """None until it has ended."""
        ...


_KEEPER = Path(__file__).with_name("keeper.py")
_END_SECONDS = 8.0  # longer than the keeper's grace period; everything ends within ten seconds
_LOOK_SECONDS = 0.5
_LOCK = ".lock"
_LONGEST_SOCKET = 100  # bytes of its path; Linux allows 107, other systems 103


def run(
    arguments: Sequence[str], environment: Mapping[str, str], say: Callable[[str], None]
) -> int:
    """Run a command to its end. An interrupt ends it and is raised.

    Args:
        arguments: the command.
        environment: the command's environment, with a PATH to find it.
        say: called with the command line, for the person who started it.

    Returns:
        Its exit code, in a shell's form.
    """
    say(f"$ {shlex.join(arguments)}")
    with running(arguments, environment) as process:
        return process.wait()


@contextmanager
def running(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    output: int | IO[bytes] | None = None,
) -> Iterator[Process]:
    """Run a command until the end of the block or of this process; ends all that it started.

    Args:
        arguments: the command.
        environment: the command's environment, with a PATH to find it.
        output: file for its output and errors; None: this process's output.

    Yields:
        Its keeper, which has the command's exit code.

    Raises:
        RunError: the command is not on the PATH.
    """
    name, *rest = arguments
    keeper = [sys.executable, "-I", "-S", str(_KEEPER), command(name, environment), *rest]
    errors = None if output is None else subprocess.STDOUT
    with subprocess.Popen(  # noqa: S603 - the caller's command
        keeper,
        env=dict(environment),
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=errors,
        start_new_session=True,  # Ctrl-C is for this process only
    ) as process:
        try:
            yield process
        finally:
            _end(process)


def command(name: str, environment: Mapping[str, str]) -> str:
    """The path of a command.

    Raises:
        RunError: it is not installed.
    """
    found = shutil.which(name, path=environment["PATH"])
    if found is None:
        raise RunError(f"the command {name} is not on the PATH")
    return found


def _end(process: Process) -> None:
    """Make the keeper end its command."""
    if process.stdin:
        process.stdin.close()
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


def first_end(*processes: Polled) -> None:
    """Wait until one of them has ended."""
    while all(process.poll() is None for process in processes):
        time.sleep(_LOOK_SECONDS)


@contextmanager
def terminable() -> Iterator[None]:
    """Inside the block, SIGTERM interrupts like Ctrl-C, so that everything is cleaned up.

    Python handles signals only in its main thread, so in another thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        # None: what was there before was not set by Python, and cannot be put back by it.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


@contextmanager
def alone(folder: Path, what: str) -> Iterator[None]:
    """Inside the block, no second process of this kind can run from a folder.

    Args:
        folder: an existing folder; remains of a killed process in it do no harm.
        what: the command's name, for the message.

    Raises:
        RunError: such a process runs already, or the folder cannot be written.
    """
    path = folder / _LOCK
    try:
        file = path.open("a+")
    except OSError as exc:
        raise RunError(f"{path}: {exc.strerror}") from exc
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            file.seek(0)
            raise RunError(f"{folder}: {what} runs already, as process {file.read()}") from exc
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            with suppress(OSError):
                file.truncate(0)


@contextmanager
def own_folder(purpose: str) -> Iterator[Path]:
    """A temporary folder for the time of the block; those of killed processes are removed first.

    Args:
        purpose: is part of the folder's name.

    Raises:
        RunError: the folder cannot be written.
    """
    prefix = f"fedhead-{purpose}-"
    for old in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        # Whose lock cannot be read is another user's. Without a lock, it is being made just now.
        with suppress(RunError, OSError):
            if old.stat().st_uid == os.getuid() and (old / _LOCK).exists() and not is_held(old):
                shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with alone(folder, "fedhead"):
            yield folder


def socket_in(own: Path, name: str = "socket") -> str:
    """The path of a socket in a folder that only its owner may enter.

    Raises:
        RunError: the system's temporary folder has too long a name.
    """
    path = str(own / name)
    if len(path.encode()) > _LONGEST_SOCKET:
        raise RunError(f"{path} is too long for a socket: set TMPDIR to a folder with a short name")
    return path


def is_held(folder: Path) -> bool:
    """Whether a process that uses ``alone`` runs from a folder.

    Raises:
        RunError: its lock cannot be read.
    """
    path = folder / _LOCK
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False  # no process ever ran from it
    except BlockingIOError:
        return True
    except OSError as exc:
        raise RunError(f"{path}: {exc.strerror}") from exc
    return False
