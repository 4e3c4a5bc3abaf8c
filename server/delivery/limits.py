"""What downloads may take: bytes a second, and how many at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Clock", "Places", "RateLimit"]


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


class Places:
    """So many downloads at once, one for each device.

    A device's new download takes the place of its old one: that is mostly a connection that broke
    without the server having noticed.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._end: dict[str, Callable[[], object]] = {}

    def enter(self, device: str, end: Callable[[], object]) -> bool:
        """Take a place.

        Args:
            device: whose download it is.
            end: breaks the download off; called when the device starts another.

        Returns:
            Whether there was a place.
        """
        with self._lock:
            old = self._end.get(device)
            if old is None and len(self._end) >= self._limit:
                return False
            self._end[device] = end
        if old is not None:
            old()
        return True

    def leave(self, device: str, end: Callable[[], object]) -> None:
        """Give the place back, unless a newer download of the device has it."""
        with self._lock:
            if self._end.get(device) is end:
                del self._end[device]
