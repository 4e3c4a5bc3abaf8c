"""What is known of the tasks of rounds that are forgotten: a phone may still come with a result."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass

from client.gateway.figures import Figures, RoundFigures
from client.gateway.presence import Presence
from client.gateway.round import LATE, Judged, Round

__all__ = ["Past", "is_at_work"]

_VERDICTS = 50_000  # of past tasks that are known


@dataclass
class _Ended:
    """A task.

    Attributes:
        client: whose it was.
        judged: what became of it; None: it has not come.
        figures: of its round.
        missed: how the round counts what has not come.
    """

    client: int
    judged: Judged | None
    figures: RoundFigures | None
    missed: str


def is_at_work(presence: Presence, client: int, given: float) -> bool:
    """Whether a phone has not been back since it was given a task, at that monotonic time."""
    seen = presence.get(client)
    return bool(given) and (seen is None or seen.since < given)


class Past:
    """The tasks; of private rounds none, so that nothing tells who was asked.

    Args:
        figures: the counters.
        presence: the phones.
    """

    def __init__(self, figures: Figures, presence: Presence) -> None:
        self._figures, self._presence = figures, presence
        self._tasks: OrderedDict[str, _Ended] = OrderedDict()
        self._given: dict[int, tuple[float, float]] = {}

    def add(self, round_: Round) -> None:
        """Note what became of a round's tasks."""
        if round_.order.private:
            return
        for state in round_.states.values():
            ended = _Ended(state.client, state.judged, round_.figures, round_.missed)
            self._tasks[state.id] = ended
            if state.judged is None and state.given:
                self._given[state.client] = state.given, round_.times.ends
        while len(self._tasks) > _VERDICTS:
            self._tasks.popitem(last=False)

    def drop(self, task: str) -> None:
        """Forget a task that is open again."""
        self._tasks.pop(task, None)

    def judged(self, task: str, client: int) -> Judged | None:
        """What became of a phone's task, which has come now; None: it is none of its."""
        ended = self._tasks.get(task)
        if ended is None or ended.client != client:
            return None
        if ended.judged is None:
            ended.judged = LATE
            self._figures.late(client, ended.missed, ended.figures)
        else:
            self._figures.judged(client, "duplicate", "", ended.figures)
        return ended.judged

    def at_work(self) -> set[int]:
        """Clients that may be at a task still."""
        now = time.monotonic()
        self._given = {
            client: (given, ends)
            for client, (given, ends) in self._given.items()
            if now < ends and is_at_work(self._presence, client, given)
        }
        return set(self._given)
