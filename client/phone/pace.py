"""When a phone calls again, so that a fleet spreads its calls and spares a server in trouble."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from common.errors import ProtocolError
from common.phones.phones_pb2 import Later

__all__ = ["LONGEST_SECONDS", "Pace"]

LONGEST_SECONDS = 3600.0
"""Longest time between two tries after a failure."""

_SHORTEST_SECONDS = 0.05
_FIRST_SECONDS = 1.0  # taken as drawn before the first window
_LONGEST_WINDOW = 7 * 24 * 3600.0


class Pace:
    """A phone's times between calls.

    Args:
        draw: gives a number between two others, uniformly. Phones that were told the same window
            must not draw the same.
    """

    def __init__(self, draw: Callable[[float, float], float] = random.uniform) -> None:
        self._draw = draw
        self._last = draw(_FIRST_SECONDS / 2, _FIRST_SECONDS)

    def later(self, window: Later) -> float:
        """Seconds until the next call, uniform in a server's window.

        Raises:
            ProtocolError: the window is none.
        """
        first, last = window.min_seconds, window.max_seconds
        if not (math.isfinite(last) and 0 <= first <= last):
            raise ProtocolError(f"the window is {first:g} to {last:g} s, expected two times")
        drawn = self._draw(min(first, _LONGEST_WINDOW), min(last, _LONGEST_WINDOW))
        self._last = max(drawn, _SHORTEST_SECONDS)
        return self._last

    def again(self) -> float:
        """Seconds until the next try after a failure: twice the last time, at most an hour."""
        # A window may have been longer than an hour; a failure does not shorten it.
        self._last = max(self._last, min(2 * self._last, LONGEST_SECONDS))
        return self._last
