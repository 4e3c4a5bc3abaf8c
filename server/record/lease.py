"""A run ends with the process that a person started it by, however that ends.

Through Flower the run is another process's child, which goes on unseen where its operator's was
killed. So that process holds a lock on a file in the run folder, which the system frees when it
dies, and the run waits for the lock in a thread of its own.
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
_LEFT_SECONDS = 15.0  # in which a run whose operator was killed has ended
_FAREWELL_SECONDS = 5.0


def lease_of(run: Path) -> Path:
    """The file in a run folder."""
    return run / ".operator.lock"


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Let a run go on, until the block ends or this process does.

    Raises:
        RunError: another process has a run going on in this folder.
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
    """From now on, end this process when nobody holds the lease any more.

    Args:
        path: of the file.
    """
    Thread(target=_follow, args=(path,), daemon=True).start()


def _follow(path: Path) -> None:
    why = "the process that started this run has ended"
    with ExitStack() as stack:
        try:
            # Shared, and kept: who resumes the run meanwhile waits until this process has ended.
            fcntl.flock(stack.enter_context(path.open()), fcntl.LOCK_SH)
        except OSError as exc:
            why = f"{path}: {exc.strerror}: nobody knows whether this run is still wanted"
        _end(why)


def _end(why: str) -> NoReturn:
    event("ended", f"{why}, and so the run ends", level=logging.ERROR)
    os.kill(os.getpid(), signal.SIGTERM)  # Flower says goodbye to its SuperLink
    time.sleep(_FAREWELL_SECONDS)
    os._exit(1)
