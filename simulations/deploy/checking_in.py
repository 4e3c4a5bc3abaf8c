"""A running device checks in with delivery each hour, in a process of its own that soon ends.

A server that cannot be reached is asked again after ten minutes.
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
    """The check-ins of a device, for ``first_end`` beside its processes.

    Args:
        device: its folder.
        environment: of its processes.
        log: file for what a check-in says; each thing is said once.
        say: gets the lines for the person who started the device.
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
        """A SuperNode starts, and keeps the authorities that are trusted now until its end."""
        self._trusted = self._authorities.read_bytes()

    def poll(self) -> int | None:
        """0 once other authorities are trusted than a while ago; None before."""
        if self._process is not None and self._process.poll() is not None:
            # Devices that lost power together do not all come at once for ever.
            pause = _AGAIN_SECONDS if self._process.returncode else _SECONDS
            self._due = time.monotonic() + pause * random.uniform(0.9, 1.1)  # noqa: S311
            self._tell()
        elif self._process is None and time.monotonic() > self._due:
            output = self._stack.enter_context(self._log.open("wb"))
            started = running(self._command, self._environment, output)
            self._process = self._stack.enter_context(started)
        return None if self._authorities.read_bytes() == self._trusted else 0

    def _tell(self) -> None:
        """What the check-in that has ended said, unless the one before said the same."""
        self._process = None
        self._stack.close()
        said = self._log.read_text(errors="replace").strip()
        if said != self._said:
            self._said = said
            for line in said.splitlines():
                self._say(line)
