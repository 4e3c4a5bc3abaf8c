"""How a run stands and what each round gave, for whoever watches it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

__all__ = ["OnRound", "Progress", "Standing", "StopRun"]

OnRound = Callable[[Mapping[str, Any]], None]
"""Called with the line of metrics.jsonl of each finished round, once the round is on the disk. What
it raises ends the run there, which can be resumed; ``StopRun`` makes that round the last one."""


class StopRun(Exception):  # noqa: N818 - no error: how a listener says that it has seen enough
    """Raised by a listener: the round it was told of is the last, and the run finishes with it."""


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
    """Tells listeners of each change and of each round, from the run's thread.

    Args:
        listener: called with each new standing.
        on_round: called with each finished round's metrics.
    """

    def __init__(
        self,
        listener: Callable[[Standing], None] = lambda _: None,
        on_round: OnRound = lambda _: None,
    ) -> None:
        self._listener, self._standing = listener, Standing()
        self._on_round = [on_round]

    def update(self, **changes: int) -> None:
        """Set fields of the standing."""
        standing = dataclasses.replace(self._standing, **changes)
        if standing != self._standing:
            self._standing = standing
            self._listener(standing)

    def finished(self, metrics: Mapping[str, Any]) -> bool:
        """Tell of a finished round: ``round`` and its metrics, as metrics.jsonl has them.

        Returns:
            Whether a listener wants it to be the last.
        """
        is_last = False
        for on_round in self._on_round:
            try:
                on_round(metrics)
            except StopRun:
                is_last = True
        return is_last

    @contextmanager
    def told(self, on_round: OnRound) -> Iterator[None]:
        """Tell another one of each round meanwhile, before the one who may end the run."""
        self._on_round.insert(0, on_round)
        try:
            yield
        finally:
            self._on_round.remove(on_round)
