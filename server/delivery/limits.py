"""Limits of downloads: bytes per second, and how many at once."""

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
    """The time in seconds, and a way to wait."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


class RateLimit:
    """Limits the bytes per second of all callers together; callers take turns.

    Unused bytes are not saved up: after a pause the rate is the same.
    """

    def __init__(self, bytes_per_second: float, clock: Clock) -> None:
        self._rate = bytes_per_second
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at = clock.now()

    def take(self, num_bytes: int) -> None:
        """Wait until this number of bytes may be sent."""
        with self._lock:
            now = self._clock.now()
            start = max(now, self._free_at)
            self._free_at = start + num_bytes / self._rate
        if start > now:
            self._clock.sleep(start - now)


@dataclass
class _Download:
    end: Callable[[], object]
    moved: float  # when its reader last took a piece


class Places:
    """Limits the number of downloads at once, one for each device.

    A device's new download takes the place of its old one, because the old one is usually a broken
    connection that the server has not noticed. If all places are taken, it takes the place of a
    download whose reader has stopped.

    Args:
        limit: largest number of downloads at once.
        stall_seconds: a reader that takes nothing for this time has stopped.
        clock: the clock to use.
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
            device: the device that downloads.
            end: ends the download; called when it loses its place to another.

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
                    "%s: its download is ended: it has taken nothing for %.0f s, and others wait "
                    "for the place",
                    *(slowest, idle),
                )
            self._downloads[device] = _Download(end, self._now())
        if old is not None:
            old.end()
        return True

    def moved(self, device: str, end: Callable[[], object]) -> None:
        """Record that a piece was taken, unless a newer download has the place."""
        with self._lock:
            if (download := self._downloads.get(device)) and download.end is end:
                download.moved = self._now()

    def leave(self, device: str, end: Callable[[], object]) -> None:
        """Give the place back, unless a newer download has it."""
        with self._lock:
            if (download := self._downloads.get(device)) and download.end is end:
                del self._downloads[device]
