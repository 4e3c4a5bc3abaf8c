"""All rounds of a gateway, on the disk, so that a kill loses no update that was accepted.

A round has a folder, with a file for the order, one for each judged task, and one that says that it
is closed. It is kept as long as the server may still ask for its answer; in a private run until the
answer is made. After that the verdicts are kept in memory, because a phone may ask again.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from client.gateway.backbones import Blobs
from client.gateway.figures import Figures
from client.gateway.kept import ORDER, is_closed, keep_closed, keep_order, recall
from client.gateway.orders import Order
from client.gateway.past import Past, is_at_work
from client.gateway.presence import Presence, Seen
from client.gateway.record import Record, read_record
from client.gateway.round import Round, State, Times
from client.gateway.runs import RunInfo
from client.gateway.settling import Heavy, Settling
from client.gateway.uploads import Uploads
from common.messages import Rejection

__all__ = ["Rounds"]

logger = logging.getLogger("fedhead.gateway")

_ASKED_AGAIN = 60.0  # seconds after the server has stopped to wait


class Rounds:
    """The rounds.

    Args:
        folder: their folder.
        figures: the counters.
        presence: the phones.
        uploads: what arrives in parts.
        blobs: what phones fetch.
        heavy: runs a function that computes, in a thread.
        is_valid: whether a client's phone has not been revoked.

    Attributes:
        past: what became of tasks whose rounds are forgotten.
        settle: see ``Settling.settle``.
    """

    def __init__(
        self,
        folder: Path,
        figures: Figures,
        presence: Presence,
        uploads: Uploads,
        blobs: Blobs,
        heavy: Heavy,
        is_valid: Callable[[int], bool],
    ) -> None:
        self._folder, self._figures, self._presence = folder, figures, presence
        self._uploads, self._blobs, self._heavy = uploads, blobs, heavy
        self._is_valid = is_valid
        self._rounds: dict[str, Round] = {}
        self._tasks: dict[str, tuple[Round, State]] = {}
        self.past = Past(figures, presence)
        self.settle = Settling(folder, figures, uploads, heavy).settle
        self._opening = asyncio.Lock()

    @property
    def open(self) -> list[Round]:
        """The rounds that wait for results, the oldest first."""
        return [round_ for round_ in self._rounds.values() if not round_.closed.is_set()]

    def busy(self, run_id: str) -> set[int]:
        """Clients with a task that counts still, and those that may be at one that does not.

        Args:
            run_id: of the run that asks. Its server asks before a round: whatever is open of this
                run does not count any more. Nor do private rounds, because no other run's server
                may see whom they ask.
        """
        now, found = time.monotonic(), self.past.at_work()
        for round_ in self._rounds.values():
            if round_.order.private:
                continue
            counts = not round_.closed.is_set() and round_.order.run_id != run_id
            is_timely = now < round_.times.ends
            for client, state in round_.states.items():
                if state.judged is None and (
                    counts or (is_timely and is_at_work(self._presence, client, state.given))
                ):
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
                known.enough, known.times = enough, known.times.again(seconds)
                self._expect(known)
                known.look()
                return known
            if known and time.monotonic() < known.times.began + known.times.seconds:
                return known
            if known:
                self._forget(known)
                await asyncio.to_thread(self._remove, known)
            round_ = Round(order, run, Times.now(seconds), enough, self._figures)
            await asyncio.to_thread(keep_order, self._folder / round_.id, round_)
            self._end_before(order)
            self._add(round_)
            return round_

    def _end_before(self, order: Order) -> None:
        """End the rounds that the server has given up, because the run has gone on."""
        for other in self._rounds.values():
            same_run = other.order.run_id == order.run_id
            if same_run and other.order.round_number <= order.round_number:
                other.is_over = True
                if not other.closed.is_set():
                    other.close("over-selected")

    def _expect(self, round_: Round) -> None:
        if round_.order.private:
            self._presence.expect(round_.states, round_.times.ends)

    def _add(self, round_: Round, *, again: bool = False) -> None:
        self._rounds[round_.id] = round_
        for state in round_.states.values():
            self._tasks[state.id] = round_, state
            self.past.drop(state.id)
        self._expect(round_)
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
                for client, count in words["counts"]:
                    round_.states[int(client)].count = int(count)
            except Exception as exc:  # whatever is in it must not keep the service from its start
                # Its updates cannot be told apart without it. The server asks again.
                logger.warning("a round is left out: %s: %s", type(exc).__name__, exc)
                shutil.rmtree(folder, ignore_errors=True)
                continue
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

    async def reply(self, round_: Round) -> bytes:
        """The answer to the server, once the round is closed; messages at once share the work."""
        round_.waiters += 1
        try:
            await round_.closed.wait()
            if round_.answer is None:
                round_.answer = asyncio.create_task(self._answer(round_))
            return await asyncio.shield(round_.answer)
        finally:
            round_.waiters -= 1

    async def _answer(self, round_: Round) -> bytes:
        folder, is_kept = self._folder / round_.id, False

        def made() -> bytes:
            valid = [client for client in round_.accepted if self._is_valid(client)]
            revoked = {*round_.accepted} - {*valid}
            rejected = [Rejection(c, "refused: revoked-token") for c in sorted(revoked)]
            keep_closed(folder, round_.accepted, round_.missed)
            return round_.order.reply(
                valid,
                lambda c: read_record(folder / str(c)),
                [*round_.rejected(), *rejected],
                round_.phases,
            )

        try:
            if not round_.is_told and not is_closed(folder):
                self._figures.tell(round_.figures)
            round_.is_told = True
            answer: bytes = await self._heavy(made)
            if round_.order.private:  # on the disk it would tell who took part
                await asyncio.to_thread(self._remove, round_)
            is_kept = round_.order.private
        finally:
            if not is_kept:
                round_.answer = None
        self._figures.due.set()
        return answer

    async def sweep(self) -> None:
        """Close rounds whose time is over, and forget those that nobody can ask for any more."""
        now = time.monotonic()
        for round_ in list(self._rounds.values()):
            round_.look()
            ends = round_.times.began + round_.times.seconds + _ASKED_AGAIN
            is_past = round_.is_over or now > ends
            if round_.closed.is_set() and is_past and not round_.waiters:
                self._forget(round_)
                await asyncio.to_thread(self._remove, round_)

    def _forget(self, round_: Round) -> None:
        del self._rounds[round_.id]
        round_.withdraw(self._blobs)
        for state in round_.states.values():
            del self._tasks[state.id]
        self.past.add(round_)

    def _remove(self, round_: Round) -> None:
        shutil.rmtree(self._folder / round_.id, ignore_errors=True)
        for state in round_.states.values():
            self._uploads.drop(state.id)
