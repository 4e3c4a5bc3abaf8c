"""A run that another takes the place of: moved aside, and removed only once that has begun.

While ``runs/mine`` begins again, its former content lies in ``runs/.mine.replaced``. It goes when
the first round of the new run is on the disk; a new run that ends before puts it back, and where
that was killed the next command that meets the folder does.
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
_LEFT_SECONDS = 15.0  # in which a process has ended whose operator has
_FAILED_LOG = "flower-failed.log"


def replaced_of(path: Path) -> Path:
    """Where the run lies that a run folder's new content replaces."""
    return path.with_name(f".{path.name}.replaced")


def place_of(old: Path) -> Path | None:
    """The run folder whose former content lies here; None: this is no such place."""
    name = old.name.removeprefix(".").removesuffix(".replaced")
    path = old.with_name(name)
    return path if replaced_of(path) == old else None


def has_begun(path: Path) -> bool:
    """Whether a round of a run is on the disk."""
    return any((path / "checkpoint").glob("[0-9]*"))


@contextmanager
def locked(path: Path, *, seconds: float = 0.0) -> Iterator[None]:
    """Let nobody work on a run meanwhile, neither a process nor an operator of Flower's.

    Args:
        path: the run folder.
        seconds: how long to wait for who does.

    Raises:
        RunError: somebody does.
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
    """Make room for a new run, and put the former one back if the block ends before that begins.

    Args:
        path: of a run folder.

    Raises:
        RunError: the folder holds something else, or a run that is still at work.
    """
    if not (path / "run.json").exists():
        raise RunError(f"{path} is not empty and holds no run: not overwritten")
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
    """Finish what a process was at that was killed while a run took another's place."""
    old = replaced_of(path)
    if not old.is_dir():
        return
    try:
        with locked(old):
            _settle(path, old)
    except RunError:
        return  # it is at it


def forget_replaced(path: Path) -> None:
    """Remove the run whose place this one has taken; it has begun."""
    shutil.rmtree(replaced_of(path), ignore_errors=True)


def _settle(path: Path, old: Path) -> None:
    if has_begun(path):
        forget_replaced(path)
        return
    log = ""
    if not is_empty(path):
        if not (path / "run.json").exists():
            logger.warning("%s holds no run, and the one it held before lies in %s", path, old)
            return
        try:
            with locked(path, seconds=_LEFT_SECONDS):
                if (path / "flower.log").exists():
                    (path / "flower.log").replace(old / _FAILED_LOG)
                    log = f", and left {path / _FAILED_LOG}"
        except RunError:
            logger.warning("%s is still at work; the run it was to replace lies in %s", path, old)
            return
    shutil.rmtree(path, ignore_errors=True)
    old.rename(path)
    logger.warning("%s holds its former run again: the new one had no round%s", path, log)
