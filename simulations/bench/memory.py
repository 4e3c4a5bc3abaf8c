"""Peak anonymous memory of a process and all its children."""

from __future__ import annotations

import threading
from pathlib import Path

import psutil

__all__ = ["PeakMemory"]

_PAUSE_SECONDS = 0.05


class PeakMemory:
    """Watches a process tree from a thread, as a context manager.

    It counts RssAnon on Linux, and elsewhere a process's private memory. Pages of mapped files do
    not count, because the system can drop them.

    Attributes:
        peak_bytes: the largest sum seen so far.
    """

    def __init__(self, pid: int) -> None:
        self._root = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak_bytes = 0

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_PAUSE_SECONDS):
            try:
                root = psutil.Process(self._root)
                pids = [self._root, *(child.pid for child in root.children(recursive=True))]
            except psutil.NoSuchProcess:
                return
            self.peak_bytes = max(self.peak_bytes, sum(map(_anonymous_bytes, pids)))


def _anonymous_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status")
        if not status.parents[1].exists():
            return int(psutil.Process(pid).memory_full_info().uss)
        for line in status.read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except (OSError, psutil.Error):  # the process has ended meanwhile
        pass
    return 0
