"""Lets a running device check in with delivery each hour, in a short process of its own.

If the server cannot be reached, the device tries again after ten minutes.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from simulations.deploy.processes import Process, running

__all__ = ["CheckingIn"]

_SECONDS, _AGAIN_SECONDS = 3600.0, 600.0


class CheckingIn:
    """A device's check-ins, to be passed to ``first_end`` like a process.

    Args:
        device: the device's folder.
        environment: the environment of its processes.
        log: file for a check-in's output; repeated output is shown once.
        say: called with lines for the person who started the device.
    """

    def __init__(
        self, device: Path, environment: Mapping[str, str], log: Path, say: Callable[[str], None]
    ) -> None:
        self._command = [
            sys.executable, "-P", "-m", "fedhead", "delivery", "check-in", str(device),
        ]  # fmt: skip
        self._environment, self._log, self._say = environment, log, say
        self._authorities = device / "ca.crt"
        self._trusted, self._due, self._said = b"", 0.0, ""
        self._stack = ExitStack()
        self._process: Process | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def remember(self) -> None:
        """Remember the authorities that a starting SuperNode will trust until its end."""
        self._trusted = self._authorities.read_bytes()

    def poll(self) -> int | None:
        """0 once the trusted authorities have changed since ``remember``; None before."""
        if self._process is not None and self._process.poll() is not None:
            # Random, so that devices that lost power together do not always come together.
            pause = _AGAIN_SECONDS if self._process.returncode else _SECONDS
            self._due = time.monotonic() + pause * random.uniform(0.9, 1.1)  # noqa: S311
            self._tell()
        elif self._process is None and time.monotonic() > self._due:
            output = self._stack.enter_context(self._log.open("wb"))
            started = running(self._command, self._environment, output)
            self._process = self._stack.enter_context(started)
        return None if self._authorities.read_bytes() == self._trusted else 0

    def _tell(self) -> None:
        """Show the output of the ended check-in, unless the one before had the same."""
        self._process = None
        self._stack.close()
        said = self._log.read_text(errors="replace").strip()
        if said != self._said:
            self._said = said
            for line in said.splitlines():
                self._say(line)
