"""Ends a stream that brings next to nothing: a server may answer pings and send no content."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from common.delivery.wire import LEAST_BYTES

__all__ = ["Watch"]


class Watch:
    """Ends a stream unless ``LEAST_BYTES`` pass in each period, inside a ``with``.

    Args:
        end: breaks the stream off; called in another thread, once at most.
        seconds: the period.

    Attributes:
        has_ended: whether ``end`` was called.
    """

    def __init__(self, end: Callable[[], object], seconds: float) -> None:
        self.has_ended = False
        self._end, self._seconds = end, seconds
        self._over = threading.Event()
        self._since, self._bytes = time.monotonic(), 0

    def __enter__(self) -> Self:
        threading.Thread(target=self._look, name="watch", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()

    def passed(self, num_bytes: int) -> None:
        """So many bytes of content have passed."""
        self._bytes += num_bytes
        if self._bytes >= LEAST_BYTES:
            self._since, self._bytes = time.monotonic(), 0

    def _look(self) -> None:
        while (left := self._since + self._seconds - time.monotonic()) > 0:
            if self._over.wait(left):
                return
        self.has_ended = True
        self._end()
