"""Which phones were there lately, what they said, and when they are to come back.

The pace is steered as in Bonawitz et al., "Towards federated learning at scale: system design"
(arXiv 1902.01046): each phone is told a window of time, so wide in a large fleet that all check-ins
together have the rate that the operator has set. A phone that comes more often is not chosen more
often: the server draws among the phones that were there lately.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any

from client.gateway.door import Phone
from client.gateway.place import Settings
from common.identity import client_of_phone
from common.phones import phones_pb2 as pb

__all__ = ["Presence", "Seen"]

_HOUR, _DAY = 3600.0, 86_400.0
_NARROWEST = 10.0  # seconds; of a small fleet's window
_LATELY = 2.5  # windows
_LEAST_LATELY = 60.0
_AT_ONCE = 0.5  # seconds; largest pause of a phone that may wait here for a task
_BURST, _RATE = 60.0, 4.0  # check-ins of one phone: at once, and a second


@dataclass
class Seen:
    """A phone, as it was when it checked in last.

    Attributes:
        phone: who it is.
        last: when it was there last, seconds since 1970; results in private runs leave it.
        there: when it was there last, whatever for; monotonic seconds.
        expected: until when it counts as there, because it is asked in a private run, whose phones
            must not be missed; monotonic seconds.
        since: of its last check-in; monotonic seconds.
        waits: whether it would wait here for a task.
        ready: whether it may train now.
        problem: why it cannot take part; mostly empty.
        formats: of backbones that it can run.
        abilities: what it can do.
        holdings: for each description's id, numbers of examples: of the train and the test part.
        counts: verdicts on it, by name.
        told: by run, a hash of the last description that it got, and when; monotonic seconds.
        tokens: check-ins that it may make at once, at ``refilled``.
        refilled: see ``tokens``; monotonic seconds.
    """

    phone: Phone
    last: float = 0.0
    there: float = -inf
    expected: float = -inf
    since: float = 0.0
    waits: bool = False
    ready: bool = False
    problem: str = ""
    formats: tuple[str, ...] = ()
    abilities: frozenset[str] = frozenset()
    holdings: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    told: dict[str, tuple[int, float]] = field(default_factory=dict)
    tokens: float = _BURST
    refilled: float = field(default_factory=time.monotonic)

    def may_call(self) -> bool:
        """Take one call off those that it may make now: check-ins, and questions for models."""
        now = time.monotonic()
        self.tokens = min(_BURST, self.tokens + (now - self.refilled) * _RATE)
        self.refilled = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class Presence:
    """The phones that the gateway has met.

    Args:
        settings: the pace, and the number of calls that may be held.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._seen: dict[int, Seen] = {}
        self._held: dict[int, asyncio.Future[bool]] = {}
        self._counted = -inf, 0

    def of(self, phone: Phone) -> Seen:
        """What is known of a phone, even of one that was never there."""
        return self._seen.setdefault(phone.client, Seen(phone))

    def get(self, client: int) -> Seen | None:
        """What is known of the phone with this number."""
        return self._seen.get(client)

    def name(self, client: int) -> str:
        """A phone's name, for people."""
        seen = self._seen.get(client)
        return seen.phone.name if seen else f"client {client}"

    def check_in(
        self, phone: Phone, request: pb.CheckInRequest, private: Collection[str] = ()
    ) -> Seen:
        """Note what a phone says.

        Args:
            phone: who it is.
            request: what it says.
            private: descriptions of private runs, of which nobody may know more than whether a
                phone has examples; what it may say beyond that is forgotten here.
        """
        seen = self.of(phone)
        seen.last, seen.since = time.time(), time.monotonic()
        seen.there = seen.since
        seen.ready, seen.problem = request.ready, request.problem
        seen.waits = request.wait_seconds > 0
        seen.formats, seen.abilities = tuple(request.formats), frozenset(request.abilities)
        seen.holdings = {
            h.description: (min(h.num_examples, 1), 0)
            if h.description in private
            else (h.num_examples, h.num_test_examples)
            for h in request.holdings
        }
        return seen

    def come_back(self, phone: Phone, *, untold: bool = False) -> None:
        """Note that a phone is still there.

        Args:
            phone: who it is.
            untold: whether nobody may see that it was.
        """
        seen = self.of(phone)
        seen.there = time.monotonic()
        if not untold:
            seen.last = time.time()

    def expect(self, clients: Iterable[int], ends: float) -> None:
        """Count phones as there until a monotonic time, wherever they are."""
        for client in clients:
            if seen := self._seen.get(client):
                seen.expected = ends

    @property
    def fleet(self) -> int:
        """Number of phones that checked in within a day."""
        counted, size = self._counted
        now = time.monotonic()
        # Of ten thousand every eleven seconds: counting them takes milliseconds.
        if now - counted > 1 + size / 1000 or size < self._settings.max_held_calls:
            size = sum(now - seen.there < _DAY for seen in self._seen.values())
            self._counted = now, size
        return size

    @property
    def window(self) -> float:
        """Seconds in which each phone is to come back once."""
        return max(_NARROWEST, self.fleet / self._settings.check_ins_per_second)

    def later(self, *, soon: bool = False) -> pb.Later:
        """When a phone is to come back.

        Args:
            soon: whether it should wait here for a task, if there is room for the whole fleet.
        """
        if soon and self.fleet <= self._settings.max_held_calls:
            return pb.Later(min_seconds=0.0, max_seconds=_AT_ONCE)
        window = self.window
        return pb.Later(min_seconds=window / 2, max_seconds=1.5 * window)

    def lately(self) -> Iterator[Seen]:
        """The phones that checked in lately, and those that are waiting now."""
        now = time.monotonic()
        since = now - max(_LEAST_LATELY, _LATELY * self.window)
        for client, seen in self._seen.items():
            if seen.there >= since or seen.expected > now or client in self._held:
                yield seen

    async def hold(self, client: int, seconds: float) -> bool:
        """Wait for news about a client.

        Returns:
            False: there is none, no room to wait, or the phone waits in another call now.
        """
        if (former := self._held.pop(client, None)) and not former.done():
            former.set_result(False)
        if seconds <= 0 or len(self._held) >= self._settings.max_held_calls:
            return False
        news = self._held[client] = asyncio.get_running_loop().create_future()
        try:
            return await asyncio.wait_for(news, seconds)
        except TimeoutError:
            return False
        finally:
            if self._held.get(client) is news:
                del self._held[client]

    def wake(self, clients: Iterable[int] | None = None) -> None:
        """End the waiting of some clients, or of all: there is something to do."""
        for client in list(self._held) if clients is None else clients:
            news = self._held.get(client)
            if news and not news.done():
                news.set_result(True)

    def rows(self, *, coarsely: bool = False) -> dict[str, dict[str, Any]]:
        """All phones, for ``fleet.json``.

        Args:
            coarsely: whether times are told by the hour alone. A phone at work does not check in,
                and in a private run nobody may know who is.
        """
        step = _HOUR if coarsely else 0.1
        return {
            seen.phone.name: {
                "last_seen": round(seen.last // step * step, 1),
                "ready": seen.ready,
                "problem": seen.problem,
                "formats": list(seen.formats),
                "abilities": sorted(seen.abilities),
                "holdings": {name: list(counts) for name, counts in seen.holdings.items()},
                "counts": seen.counts,
            }
            for seen in self._seen.values()
            if seen.last
        }

    def restore(self, rows: Mapping[str, Mapping[str, Any]]) -> None:
        """The reverse of ``rows``."""
        for name, row in rows.items():
            phone, last = Phone(name, client_of_phone(name)), float(row["last_seen"])
            self._seen[phone.client] = Seen(
                phone,
                last=last,
                there=time.monotonic() - max(0.0, time.time() - last),
                ready=bool(row["ready"]),
                problem=str(row["problem"]),
                formats=tuple(row["formats"]),
                abilities=frozenset(row["abilities"]),
                holdings={key: (int(n), int(test)) for key, (n, test) in row["holdings"].items()},
                counts=dict(row["counts"]),
            )
