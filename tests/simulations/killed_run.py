"""Goes on with a run, and kills its own process before a file operation; see test_private_kill.

Started where everything is imported, with ``RUN``, ``AT`` and ``TOLD`` as globals. ``AT`` counts
what the run does to files: opening one to write, writing to it, syncing, renaming, removing. With 0
it is not killed, and ``TOLD`` gets their number.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import server.app
from server.export.runtime_cards import ExportReport
from simulations.run import run_in_process

_GIVEN = {"RUN": "", "AT": 0, "TOLD": "", **globals()}
RUN, AT, TOLD = (_GIVEN[name] for name in ("RUN", "AT", "TOLD"))
_AUDITED = {"os.rename", "os.remove", "os.mkdir", "os.link", "os.truncate"}
_count = 0


def operation() -> None:
    global _count
    _count += 1
    if _count == AT:
        os.kill(os.getpid(), signal.SIGKILL)


def watched(event: str, args: tuple[Any, ...]) -> None:
    if event in _AUDITED or (event == "open" and writes(args) and str(args[0]).startswith(RUN)):
        operation()


def writes(args: tuple[Any, ...]) -> bool:
    return isinstance(args[2], int) and bool(args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def counted(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        operation()
        return function(*args, **kwargs)

    return call


def main() -> None:
    # The export starts a process and has tests of its own.
    server.app.export = lambda *_: ExportReport("model", Path(), 0, "")
    os.fsync, os.write = counted(os.fsync), counted(os.write)
    sys.addaudithook(watched)
    run_in_process(Path(RUN))
    if not AT:
        Path(TOLD).write_text(str(_count))


if __name__ == "__main__":
    main()
