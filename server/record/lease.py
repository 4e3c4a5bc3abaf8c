"""A run ends when the process that started it ends, for whatever reason.

With Flower, the run is a child of another process and would go on unseen if the starting process
was killed. So the starting process holds a lock on a file in the run folder. The system frees the
lock when the process dies, and a thread of the run waits for that.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Thread
from typing import NoReturn

from common.errors import RunError
from server.record.events import event

__all__ = ["follow", "held", "lease_of"]

_PAUSE_SECONDS = 0.5
_LEFT_SECONDS = 15.0  # a run ends within this time after its operator was killed
_FAREWELL_SECONDS = 5.0


def lease_of(run: Path) -> Path:
    """The lock's file in a run folder."""
    return run / ".operator.lock"


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock, so that the run goes on until the block or this process ends.

    Raises:
        RunError: another process has a run in this folder.
    """
    deadline = time.monotonic() + _LEFT_SECONDS
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as exc:
                if time.monotonic() > deadline:
                    raise RunError(
                        f"{path.parent}: another process is at work on this run"
                    ) from exc
                time.sleep(_PAUSE_SECONDS)
        yield


def follow(path: Path) -> None:
    """From now on, end this process when no process holds the lock any more.

    Args:
        path: the lock's file.
    """
    Thread(target=_follow, args=(path,), daemon=True).start()


def _follow(path: Path) -> None:
    why = "the process that started this run has ended"
    with ExitStack() as stack:
        try:
            # The lock is shared and kept, so that a resume waits until this process has ended.
            fcntl.flock(stack.enter_context(path.open()), fcntl.LOCK_SH)
        except OSError as exc:
            why = f"{path}: {exc.strerror}: it is unknown whether this run is still wanted"
        _end(why)


def _end(why: str) -> NoReturn:
    event("ended", f"{why}, so the run ends", level=logging.ERROR)
    os.kill(os.getpid(), signal.SIGTERM)  # so that Flower can tell its SuperLink
    time.sleep(_FAREWELL_SECONDS)
    os._exit(1)
