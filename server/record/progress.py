"""The state of a run and each round's metrics, for listeners."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

__all__ = ["OnRound", "Progress", "Standing", "StopRun", "all_of"]

OnRound = Callable[[Mapping[str, Any]], None]
"""Called with each finished round's line of metrics.jsonl, once the round is on the disk. If it
raises, the run ends there and can be resumed; ``StopRun`` makes that round the last one."""


class StopRun(Exception):  # noqa: N818 - no error: how a listener says that it has seen enough
    """Raised by a listener to end the run with the round that it was told of."""


def all_of(listeners: Sequence[Callable[[Mapping[str, Any]], object]]) -> OnRound:
    """One listener for several: each is told of the round that another ends the run with."""

    def tell(metrics: Mapping[str, Any]) -> None:
        is_last = False
        for listener in listeners:
            try:
                listener(metrics)
            except StopRun:
                is_last = True
        if is_last:
            raise StopRun

    return tell


@dataclass(frozen=True)
class Standing:
    """The state of a run at one moment.

    Attributes:
        round_number: the round under way; 0 before the first.
        rounds: number of rounds of the run.
        connected: number of clients that can be reached.
        quorum: number of valid updates that a round needs; 0 as long as it is unknown.
    """

    round_number: int = 0
    rounds: int = 0
    connected: int = 0
    quorum: int = 0

    @property
    def can_progress(self) -> bool:
        """Whether enough clients are connected for the round to succeed."""
        return 0 < self.quorum <= self.connected


class Progress:
    """Tells listeners about each change and each round, in the run's thread.

    Args:
        listener: called with each new state.
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
        """Set fields of the state."""
        standing = dataclasses.replace(self._standing, **changes)
        if standing != self._standing:
            self._standing = standing
            self._listener(standing)

    def finished(self, metrics: Mapping[str, Any]) -> bool:
        """Report a finished round: ``round`` and its metrics, as in metrics.jsonl.

        Returns:
            Whether a listener wants it to be the last.
        """
        try:
            all_of(self._on_round)(metrics)
        except StopRun:
            return True
        return False

    @contextmanager
    def told(self, on_round: OnRound) -> Iterator[None]:
        """Report each round to another listener as well, before the one that may end the run."""
        self._on_round.insert(0, on_round)
        try:
            yield
        finally:
            self._on_round.remove(on_round)
