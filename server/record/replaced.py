"""A run that a new run replaces: it is moved aside, and removed once the new run has begun.

While ``runs/mine`` begins again, its former content is in ``runs/.mine.replaced``. It is removed
when the new run's first round is on the disk. If the new run ends before, it puts the content back.
If the new run was killed, the next command on the folder does.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from common.errors import RunError
from common.files import is_empty
from server.record.lease import lease_of

__all__ = [
    "forget_replaced",
    "has_begun",
    "in_place_of",
    "locked",
    "place_of",
    "recover",
    "replaced_of",
]

logger = logging.getLogger("fedhead")

_PAUSE_SECONDS = 0.2
_LEFT_SECONDS = 15.0  # a run's process ends within this time after its operator
_FAILED_LOG = "flower-failed.log"


def replaced_of(path: Path) -> Path:
    """The folder of the replaced run while a run folder has new content."""
    return path.with_name(f".{path.name}.replaced")


def place_of(old: Path) -> Path | None:
    """The run folder whose former content this is; None: it is not such a folder."""
    name = old.name.removeprefix(".").removesuffix(".replaced")
    path = old.with_name(name)
    return path if replaced_of(path) == old else None


def has_begun(path: Path) -> bool:
    """Whether a run has a round on the disk."""
    return any((path / "checkpoint").glob("[0-9]*"))


@contextmanager
def locked(path: Path, *, seconds: float = 0.0) -> Iterator[None]:
    """Inside the block, no other process works on a run, not even through Flower.

    Args:
        path: the run folder.
        seconds: how long to wait for another process to end.

    Raises:
        RunError: another process works on it.
    """
    deadline = time.monotonic() + seconds
    with ExitStack() as stack:
        for lock in (path / ".lock", lease_of(path)):
            file = stack.enter_context(lock.open("a"))
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as exc:
                    if time.monotonic() >= deadline:
                        raise RunError(f"{path}: another process is at work on this run") from exc
                    time.sleep(_PAUSE_SECONDS)
        yield


@contextmanager
def in_place_of(path: Path) -> Iterator[None]:
    """Move a run aside for a new one; put it back if the block ends before the new one has begun.

    Args:
        path: the run folder.

    Raises:
        RunError: the folder holds something else, or a run that is still running.
    """
    if not (path / "run.json").exists():
        raise RunError(f"{path} is not empty and is not a run: not overwritten")
    old = replaced_of(path)
    with locked(path):
        try:
            path.rename(old)
        except OSError as exc:
            if exc.errno != errno.ENOTEMPTY:
                raise
            raise RunError(f"{path}: another process is at work on this run") from exc
        try:
            yield
        finally:
            if old.exists():
                _settle(path, old)


def recover(path: Path) -> None:
    """Finish the work of a process that was killed while a run replaced another."""
    old = replaced_of(path)
    if not old.is_dir():
        return
    try:
        with locked(old):
            _settle(path, old)
    except RunError:
        return  # that process is still working


def forget_replaced(path: Path) -> None:
    """Remove the replaced run, once the new one has begun."""
    shutil.rmtree(replaced_of(path), ignore_errors=True)


def _settle(path: Path, old: Path) -> None:
    if has_begun(path):
        forget_replaced(path)
        return
    log = ""
    if not is_empty(path):
        if not (path / "run.json").exists():
            logger.warning("%s is not a run; the run that was there before is in %s", path, old)
            return
        try:
            with locked(path, seconds=_LEFT_SECONDS):
                if (path / "flower.log").exists():
                    (path / "flower.log").replace(old / _FAILED_LOG)
                    log = f", and left {path / _FAILED_LOG}"
        except RunError:
            logger.warning("%s is still running; the run that it replaces is in %s", path, old)
            return
    shutil.rmtree(path, ignore_errors=True)
    old.rename(path)
    logger.warning("%s holds its former run again: the new one had no finished round%s", path, log)
