"""What downloads may take: bytes a second, and how many at once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Clock", "Places", "RateLimit"]

logger = logging.getLogger("fedhead.delivery")


@dataclass(frozen=True)
class Clock:
    """Time, in seconds, and how to let it pass."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


class RateLimit:
    """All callers together take no more than so many bytes a second; each in its turn.

    Nothing is saved up: after a pause the rate is the same.
    """

    def __init__(self, bytes_per_second: float, clock: Clock) -> None:
        self._rate = bytes_per_second
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at = clock.now()

    def take(self, num_bytes: int) -> None:
        """Wait until these bytes may go."""
        with self._lock:
            now = self._clock.now()
            start = max(now, self._free_at)
            self._free_at = start + num_bytes / self._rate
        if start > now:
            self._clock.sleep(start - now)


@dataclass
class _Download:
    end: Callable[[], object]
    moved: float  # when a piece of it was last taken


class Places:
    """So many downloads at once, one for each device.

    A device's new download takes the place of its old one: that is mostly a connection that broke
    without the server having noticed. Where all places are taken, it takes the place of one whose
    reader has stopped reading.

    Args:
        limit: downloads.
        stall_seconds: a reader that takes nothing for so long has stopped.
        clock: tells the time.
    """

    def __init__(self, limit: int, stall_seconds: float, clock: Clock) -> None:
        self._limit = limit
        self._stall_seconds = stall_seconds
        self._now = clock.now
        self._lock = threading.Lock()
        self._downloads: dict[str, _Download] = {}

    def enter(self, device: str, end: Callable[[], object]) -> bool:
        """Take a place.

        Args:
            device: whose download it is.
            end: breaks the download off; called when it loses its place to another.

        Returns:
            Whether there was a place.
        """
        with self._lock:
            old = self._downloads.pop(device, None)
            if old is None and len(self._downloads) >= self._limit:
                slowest = min(self._downloads, key=lambda name: self._downloads[name].moved)
                idle = self._now() - self._downloads[slowest].moved
                if idle < self._stall_seconds:
                    return False
                old = self._downloads.pop(slowest)
                logger.warning(
                    "%s: its download is broken off: it has taken nothing for %.0f s, and others "
                    "wait for the place",
                    *(slowest, idle),
                )
            self._downloads[device] = _Download(end, self._now())
        if old is not None:
            old.end()
        return True

    def moved(self, device: str, end: Callable[[], object]) -> None:
        """A piece was taken of the download, unless a newer one has its place."""
        with self._lock:
            if (download := self._downloads.get(device)) and download.end is end:
                download.moved = self._now()

    def leave(self, device: str, end: Callable[[], object]) -> None:
        """Give the place back, unless a newer download has it."""
        with self._lock:
            if (download := self._downloads.get(device)) and download.end is end:
                del self._downloads[device]
