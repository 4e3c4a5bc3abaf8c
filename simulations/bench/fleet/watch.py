"""Memory and open files of a process over time."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import psutil

__all__ = ["Watch"]

_LOOK_SECONDS = 0.5


@dataclass(eq=False)
class Watch:
    """Looks at a process twice a second from a thread, as a context manager.

    Attributes:
        pid: of the process.
        moments: seconds since the beginning of each look.
        resident: bytes at each look.
        descriptors: open files at each look.
        cpu_seconds: that the process has used until the last look.
    """

    pid: int
    moments: list[float] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)
    cpu_seconds: float = 0.0

    def __post_init__(self) -> None:
        self._stop, self._began = threading.Event(), time.monotonic()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        process = psutil.Process(self.pid)
        while True:
            try:
                resident, files = process.memory_info().rss, process.num_fds()
                used = process.cpu_times()
            except psutil.Error:
                return
            self.moments.append(time.monotonic() - self._began)
            self.resident.append(resident)
            self.descriptors.append(files)
            self.cpu_seconds = used.user + used.system
            if self._stop.wait(_LOOK_SECONDS):
                return
