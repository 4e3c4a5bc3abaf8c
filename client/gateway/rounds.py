"""All rounds of a gateway, on the disk, so that a kill loses no update that was accepted.

A round has a folder, with a file for the order, one for each judged task, and one that says that it
is closed. It is kept as long as the server may still ask for its answer. After that the verdicts
are kept in memory, because a phone may ask again.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

from client.gateway.backbones import Blobs
from client.gateway.figures import Figures
from client.gateway.judge import LostError, RefusedError
from client.gateway.kept import ORDER, is_closed, keep_closed, keep_order, recall
from client.gateway.orders import Order, Result
from client.gateway.presence import Presence, Seen
from client.gateway.record import Record, read_record, write_record
from client.gateway.round import Judged, Round, State, Times
from client.gateway.runs import RunInfo
from client.gateway.uploads import Uploads
from common.errors import FedheadError
from common.phones import phones_pb2 as pb
from common.words import one_line

__all__ = ["Rounds"]

logger = logging.getLogger("fedhead.gateway")

_ASKED_AGAIN = 60.0  # seconds after the server has stopped to wait
_VERDICTS = 50_000  # of past tasks that are known
_LONGEST_REASON = 200
_OUTCOMES = {pb.Outcome.DECLINED: "declined", pb.Outcome.FAILED: "failed"}


class _ClosedError(Exception):
    """A round has closed."""


class Rounds:
    """The rounds.

    Args:
        folder: their folder.
        figures: the counters.
        presence: the phones.
        uploads: what arrives in parts.
        blobs: what phones fetch.
        heavy: runs a function that computes, in a thread.
    """

    def __init__(
        self,
        folder: Path,
        figures: Figures,
        presence: Presence,
        uploads: Uploads,
        blobs: Blobs,
        heavy: Callable[[Callable[[], Any]], Awaitable[Any]],
    ) -> None:
        self._folder, self._figures, self._presence = folder, figures, presence
        self._uploads, self._blobs, self._heavy = uploads, blobs, heavy
        self._rounds: dict[str, Round] = {}
        self._tasks: dict[str, tuple[Round, State]] = {}
        self._past: OrderedDict[str, tuple[int, Judged]] = OrderedDict()
        self._opening = asyncio.Lock()

    @property
    def open(self) -> list[Round]:
        """The rounds that wait for results, the oldest first."""
        return [round_ for round_ in self._rounds.values() if not round_.closed.is_set()]

    def busy(self) -> set[int]:
        """Clients with a task that counts still, and those that may be at one that does not."""
        now, found = time.monotonic(), set[int]()
        for round_ in self._rounds.values():
            for client, state in round_.states.items():
                if state.judged is not None:
                    continue
                seen = self._presence.get(client)
                is_at_it = state.given and (seen is None or seen.since < state.given)
                if not round_.closed.is_set() or (is_at_it and now < round_.times.ends):
                    found.add(client)
        return found

    async def enter(self, order: Order, run: RunInfo, seconds: float, enough: int) -> Round:
        """The round of an order: a new one, or the one that it belongs to already.

        Raises:
            OSError: it cannot be kept.
        """
        async with self._opening:
            known = self._rounds.get(order.identity)
            if known and not known.closed.is_set():
                known.enough = enough
                known.look()
                return known
            if known and time.monotonic() < known.times.began + known.times.seconds:
                return known
            if known:
                self._forget(known)
                await asyncio.to_thread(self._remove, known)
            round_ = Round(order, run, Times.now(seconds), enough, self._figures)
            await asyncio.to_thread(keep_order, self._folder / round_.id, round_)
            self._add(round_)
            return round_

    def _add(self, round_: Round, *, again: bool = False) -> None:
        self._rounds[round_.id] = round_
        for state in round_.states.values():
            self._tasks[state.id] = round_, state
            self._past.pop(state.id, None)
        round_.offer(self._blobs)
        seen = {client: self._presence.get(client) for client in round_.states}
        round_.begin(seen, again=again)
        self._presence.wake(round_.states)

    def restore(self, order_of: Callable[[Record], tuple[Order, RunInfo]]) -> None:
        """Go on with the rounds on the disk.

        Args:
            order_of: reads an order's record.
        """
        for folder in sorted(self._folder.glob("*")):
            try:
                record = read_record(folder / ORDER)
                order, run = order_of(record)
                words = record[0]
                times = Times.since(float(words["opened"]), float(words["seconds"]))
                round_ = Round(order, run, times, int(words["enough"]), self._figures)
            except (FedheadError, OSError, KeyError, ValueError, TypeError) as exc:
                # Its updates cannot be told apart without it. The server asks again.
                logger.warning("a round is left out: %s", exc)
                shutil.rmtree(folder, ignore_errors=True)
                continue
            for client, count in words["counts"]:
                round_.states[int(client)].count = int(count)
            recall(folder, round_)
            self._add(round_, again=True)
        self._uploads.keep_only(self._tasks)

    def next_task(self, seen: Seen) -> tuple[Round, State] | None:
        """The oldest task that waits for a phone."""
        for round_ in self.open:
            state = round_.states.get(seen.phone.client)
            if state and state.judged is None and round_.run.id in seen.holdings:
                return round_, state
        return None

    def find(self, task: str, client: int) -> tuple[Round, State] | None:
        """A phone's own task, of a closed round too."""
        found = self._tasks.get(task)
        return found if found and found[1].client == client else None

    async def add_part(self, state: State, part: tuple[str, int, int, bytes], files: int) -> int:
        """Take a part of an array; see ``Uploads.add``.

        Args:
            state: the task.
            part: SHA-256 and size of the whole; offset and bytes of the part.
            files: largest number of arrays.
        """
        async with state.lock:
            return await asyncio.to_thread(self._uploads.add, state.id, *part, files)

    async def settle(self, round_: Round, state: State, submission: pb.Submission) -> Judged:
        """Judge a result; asked again, the answer is the same.

        Raises:
            WrongOffsetError: an array has not arrived.
            DamagedUploadError: an array was damaged on its way; it was removed.
            OSError: it cannot be kept.
        """
        async with state.lock:
            if state.judged is not None:
                self._figures.judged(state.client, "duplicate", "", round_.figures)
                return state.judged
            judged = await self._judged(round_, state, submission)
            if round_.closed.is_set() and judged.what in ("accepted", "late"):
                (self._folder / round_.id / str(state.client)).unlink(missing_ok=True)
                judged = Judged("late", "the round has closed")
            round_.judge(state, judged)
            if judged.what == "accepted":
                round_.spent(state, submission)
            round_.look()
        await asyncio.to_thread(self._uploads.drop, state.id)
        return judged

    async def _judged(self, round_: Round, state: State, submission: pb.Submission) -> Judged:
        if round_.closed.is_set():
            return Judged("late", "the round has closed")
        words: dict[str, object] = {}
        parts: dict[str, bytes] = {}
        if kind := _OUTCOMES.get(submission.outcome):
            judged = Judged(cast(Any, kind), one_line(submission.reason, _LONGEST_REASON))
        else:
            try:
                result = await self._heavy(partial(self._result, round_, state, submission))
                judged = Judged("accepted")
                words, parts = dict(result.words), dict(result.parts)
            except _ClosedError:
                return Judged("late", "the round has closed")
            except RefusedError as exc:
                judged = Judged("refused", one_line(str(exc)))
            except LostError as exc:
                logger.warning("%s", exc)
                judged = Judged("refused", "lost: the gateway has lost the client's memory")
        words |= {"what": judged.what, "reason": judged.reason}
        path = self._folder / round_.id / str(state.client)
        if not round_.closed.is_set():
            await asyncio.to_thread(write_record, path, words, parts)
        return judged

    def _result(self, round_: Round, state: State, submission: pb.Submission) -> Result:
        """The checked result. Uploads are read here, where few are at work: they may be large.

        Raises:
            _ClosedError: the round has closed while the result waited for its turn. The server
                waits for the answer, which must not wait for checks that have no use.
        """
        if round_.closed.is_set():
            raise _ClosedError
        arrays = {
            array.field: self._uploads.read(state.id, array.sha256) if array.sha256 else array.data
            for array in submission.arrays
        }
        return round_.order.judged(state.client, state.count, submission, arrays)

    async def reply(self, round_: Round) -> bytes:
        """The answer to the server, once the round is closed."""
        await round_.closed.wait()
        accepted, rejected = round_.accepted, round_.rejected()
        folder = self._folder / round_.id

        def made() -> bytes:
            keep_closed(folder, accepted)
            return round_.order.reply(
                accepted, lambda c: read_record(folder / str(c)), rejected, round_.phases
            )

        if not is_closed(folder):
            self._figures.tell(round_.figures)
        answer: bytes = await self._heavy(made)
        self._figures.due.set()
        return answer

    async def sweep(self) -> None:
        """Close rounds whose time is over, and forget those that nobody can ask for any more."""
        now = time.monotonic()
        for round_ in list(self._rounds.values()):
            round_.look()
            ends = round_.times.began + round_.times.seconds + _ASKED_AGAIN
            if round_.closed.is_set() and now > ends:
                self._forget(round_)
                await asyncio.to_thread(self._remove, round_)

    def _forget(self, round_: Round) -> None:
        del self._rounds[round_.id]
        round_.withdraw(self._blobs)
        for state in round_.states.values():
            del self._tasks[state.id]
            # Of a private round nothing stays that tells who was asked.
            if not round_.order.private:
                judged = state.judged or Judged("late", "the round has closed")
                self._past[state.id] = state.client, judged
        while len(self._past) > _VERDICTS:
            self._past.popitem(last=False)

    def past(self, task: str, client: int) -> Judged | None:
        """What became of a phone's task in a round that is over."""
        owner, judged = self._past.get(task, (None, None))
        return judged if owner == client else None

    def _remove(self, round_: Round) -> None:
        shutil.rmtree(self._folder / round_.id, ignore_errors=True)
        for state in round_.states.values():
            self._uploads.drop(state.id)
