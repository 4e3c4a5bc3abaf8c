"""How a run stands, for whoever watches it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Progress", "Standing"]


@dataclass(frozen=True)
class Standing:
    """A moment of a run.

    Attributes:
        round_number: that is under way; 0 before the first.
        rounds: how many there are to be.
        connected: clients that can be reached.
        quorum: of how many a round needs valid updates; 0 as long as that is not known.
    """

    round_number: int = 0
    rounds: int = 0
    connected: int = 0
    quorum: int = 0

    @property
    def can_progress(self) -> bool:
        """Whether the round under way can succeed."""
        return 0 < self.quorum <= self.connected


class Progress:
    """Tells a listener of each change.

    Args:
        listener: called from the run's thread.
    """

    def __init__(self, listener: Callable[[Standing], None] = lambda _: None) -> None:
        self._listener, self._standing = listener, Standing()

    def update(self, **changes: int) -> None:
        """Set fields of the standing."""
        standing = dataclasses.replace(self._standing, **changes)
        if standing != self._standing:
            self._standing = standing
            self._listener(standing)
