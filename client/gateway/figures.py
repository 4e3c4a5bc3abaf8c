"""Counters of verdicts and problems, and figures of the last rounds, in ``fleet.json``.

Nothing of a private run's rounds is in it: who was asked, and what came of it, gets no noise.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from client.gateway.presence import Presence
from common.errors import DamagedError
from common.files import write_atomic
from common.phones import PHASES
from common.readback import JsonFile
from common.words import one_line

__all__ = ["Figures", "RoundFigures", "read_fleet"]

logger = logging.getLogger("fedhead.gateway")

_FLEET = JsonFile("fleet.json of a gateway")

_ROUNDS = 200


@dataclass
class RoundFigures:
    """What came of one round.

    Attributes:
        run: its id.
        name: of the run, for people.
        round: its number.
        kind: "sgd", "statistics" or "evaluate".
        asked: number of clients.
        counts: of results, by verdict: "accepted", "late", "declined", "failed", "silent",
            "over-selected".
        refused: of refused ones, by reason.
        seconds: of accepted ones, by phase.
    """

    run: str
    name: str
    round: int
    kind: str
    asked: int
    counts: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    seconds: Mapping[str, list[float]] = field(default_factory=lambda: {p: [] for p in PHASES})

    def row(self) -> dict[str, object]:
        """For ``fleet.json``."""
        names = ("accepted", "late", "declined", "failed", "silent", "over-selected")
        return {
            "run": self.run,
            "name": self.name,
            "round": self.round,
            "kind": self.kind,
            "asked": self.asked,
            **{name: self.counts[name] for name in names},
            "refused": dict(self.refused),
            "seconds": {phase: _spread(values) for phase, values in self.seconds.items()},
        }


def _spread(values: Sequence[float]) -> list[float]:
    """Median and 90th percentile; empty without values."""
    return [round(float(v), 3) for v in np.percentile(values, (50, 90))] if values else []


class Figures:
    """All counters since the deployment began.

    Args:
        path: ``fleet.json``.
        presence: the phones.

    Attributes:
        counters: by name.
        due: set when they are to be written soon.
    """

    def __init__(self, path: Path, presence: Presence) -> None:
        self._path, self._presence = path, presence
        self.due = asyncio.Event()
        self.counters: Counter[str] = Counter()
        self._old: deque[dict[str, object]] = deque(maxlen=_ROUNDS)
        self._rounds: deque[RoundFigures] = deque(maxlen=_ROUNDS)

    def count(self, name: str) -> None:
        """Count something once."""
        self.counters[name] += 1

    def judged(self, client: int, verdict: str, reason: str, figures: RoundFigures | None) -> None:
        """Count a verdict on a task.

        Args:
            client: whose it is.
            verdict: "accepted", "late", "duplicate", "declined", "failed", "refused", "silent" or
                "over-selected".
            reason: of "refused".
            figures: of its round; None: the run is private, and nothing is counted.
        """
        if figures is None:
            return
        self.count(reason if verdict == "refused" else verdict)
        if verdict == "refused":
            figures.refused[reason] += 1
        elif verdict != "duplicate":
            figures.counts[verdict] += 1
        if seen := self._presence.get(client):
            if verdict == "over-selected":  # as if it had not been asked: it has lost nothing
                seen.counts["tasks"] = max(0, seen.counts.get("tasks", 0) - 1)
            else:
                seen.counts[verdict] = seen.counts.get(verdict, 0) + 1

    def late(self, client: int, missed: str, figures: RoundFigures | None) -> None:
        """Count a result that has come after the close, in place of one that has not come.

        Args:
            client: whose it is.
            missed: as what it was counted at the close. What has come after enough others stays
                "over-selected".
            figures: of its round; None: the run is private.
        """
        if figures is None or missed != "silent":
            return
        seen = self._presence.get(client)
        for counts in (self.counters, figures.counts, seen.counts if seen else {}):
            if counts.get(missed, 0) > 0:
                counts[missed] -= 1
        self.judged(client, "late", "", figures)

    def asked(self, figures: RoundFigures, clients: Sequence[int]) -> None:
        """Note a round that begins, or goes on, and the clients that are asked now."""
        same = (figures.run, figures.round, figures.kind)
        for row in [r for r in self._old if (r["run"], r["round"], r["kind"]) == same]:
            self._old.remove(row)
        self._rounds.append(figures)
        for client in clients:
            if seen := self._presence.get(client):
                seen.counts["tasks"] = seen.counts.get("tasks", 0) + 1

    def tell(self, figures: RoundFigures | None) -> None:
        """Say in the log what came of a round that is closed; nothing of a private one."""
        if figures is None:
            return
        counts = ", ".join(f"{n} {name}" for name, n in figures.counts.items() if n)
        refused = ", ".join(f"{n} refused: {why}" for why, n in figures.refused.items())
        what = f"{figures.kind} of round {figures.round}"
        said = ", ".join(words for words in (counts, refused) if words)
        logger.info("run %s: %s: %d asked, %s", one_line(figures.name), what, figures.asked, said)

    def pack(self, *, coarsely: bool = False) -> bytes:
        """The file's content now.

        Args:
            coarsely: whether times must not tell who is at work, see ``Presence.rows``.
        """
        window = self._presence.later()
        lately = sum(1 for _ in self._presence.lately())
        rounds = [*self._old, *(figures.row() for figures in self._rounds)]
        return _FLEET.pack(
            {
                "time": round(time.time(), 1),
                "counters": dict(sorted(self.counters.items())),
                "rounds": rounds[-_ROUNDS:],
                "phones": self._presence.rows(coarsely=coarsely),
                "checked_in_lately": lately,
                "window": [window.min_seconds, window.max_seconds],
            }
        )

    def keep(self, content: bytes) -> None:
        """Put the file in place."""
        write_atomic(self._path, content, durable=False)

    def restore(self) -> None:
        """Go on from the file; begin anew without it, or if it is damaged."""
        try:
            found = read_fleet(self._path)
            self._presence.restore(found["phones"])
            self.counters.update(found["counters"])
            self._old.extend(found["rounds"])
        except FileNotFoundError:
            pass
        except (DamagedError, OSError, KeyError, ValueError, TypeError) as exc:
            logger.warning("%s; counting begins anew", exc)


def read_fleet(path: Path) -> dict[str, Any]:
    """A gateway's counters.

    Raises:
        DamagedError: the file has changed since.
        OSError: there is none, or it cannot be read.
    """
    return _FLEET.read(path)
