"""Ends a stalled stream, as a server may answer pings but send hardly any content."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from common.delivery.wire import LEAST_BYTES

__all__ = ["Watch"]


class Watch:
    """Within a ``with`` block, ends a stream unless ``LEAST_BYTES`` arrive in each period.

    Args:
        end: ends the stream; called at most once, in another thread.
        seconds: length of the period.

    Attributes:
        seconds: length of the period.
        has_ended: whether ``end`` was called.
    """

    def __init__(self, end: Callable[[], object], seconds: float) -> None:
        self.has_ended = False
        self._end, self.seconds = end, seconds
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
        """Count bytes of content that have arrived."""
        self._bytes += num_bytes
        if self._bytes >= LEAST_BYTES:
            self._since, self._bytes = time.monotonic(), 0

    def _look(self) -> None:
        while (left := self._since + self.seconds - time.monotonic()) > 0:
            if self._over.wait(left):
                return
        self.has_ended = True
        self._end()
