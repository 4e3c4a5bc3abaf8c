"""One open round: its tasks, their results, and when it closes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, cast

import numpy as np

from client.gateway.backbones import Blobs, blob_of
from client.gateway.figures import Figures, RoundFigures
from client.gateway.orders import Order, lacking, task_id
from client.gateway.presence import Seen
from client.gateway.runs import RunInfo
from common.messages import Rejection
from common.phones import phones_pb2 as pb

__all__ = ["LATE", "Judged", "Round", "State", "Times"]

What = Literal["accepted", "late", "declined", "failed", "refused"]
Missed = Literal["silent", "over-selected"]

_VERDICTS = {
    "accepted": pb.Verdict.ACCEPTED,
    "late": pb.Verdict.LATE,
    "refused": pb.Verdict.REFUSED,
    "declined": pb.Verdict.NOTED,
    "failed": pb.Verdict.NOTED,
}
_LEAST_MARGIN, _MARGIN = 2.0, 0.05  # seconds, and share of the server's patience


@dataclass(frozen=True)
class Judged:
    """What became of a task's result.

    Attributes:
        what: the verdict.
        reason: of a refusal, with details behind a colon; of the others the phone's words.
    """

    what: What
    reason: str = ""

    @property
    def word(self) -> str:
        """The reason as counters name it."""
        return self.reason.partition(":")[0]

    def verdict(self, later: pb.Later) -> pb.Verdict:
        """What the phone is told."""
        return pb.Verdict(what=_VERDICTS[self.what], reason=self.reason, later=later)


LATE = Judged("late", "the round has closed")


@dataclass
class State:
    """One client's task.

    Attributes:
        id: the task's.
        client: whose it is.
        count: number of examples that the phone is held to.
        lock: held while a result or a part of it is looked at.
        given: monotonic time when the phone got the task first; 0: not yet.
        judged: what became of it; None: the round waits for it.
        correction: SHA-256 of what only this phone may fetch; empty: nothing.
    """

    id: str
    client: int
    count: int
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    given: float = 0.0
    judged: Judged | None = None
    correction: str = ""


@dataclass(frozen=True)
class Times:
    """When a round was opened, and how long the server waits for its answer.

    Attributes:
        opened: seconds since 1970.
        began: the same moment on the monotonic clock.
        seconds: the server's patience.
    """

    opened: float
    began: float
    seconds: float

    @classmethod
    def now(cls, seconds: float) -> Times:
        """Of a round that opens now."""
        return cls(time.time(), time.monotonic(), seconds)

    @classmethod
    def since(cls, opened: float, seconds: float) -> Times:
        """Of a round that was opened by an earlier process."""
        return cls(opened, time.monotonic() - max(0.0, time.time() - opened), seconds)

    def again(self, seconds: float) -> Times:
        """Of the same round, for whose answer the server waits so long from now on."""
        return replace(self, seconds=time.monotonic() - self.began + seconds)

    @property
    def ends(self) -> float:
        """When results are late: before the server stops to wait. Monotonic."""
        margin = min(max(_LEAST_MARGIN, _MARGIN * self.seconds), self.seconds / 2)
        return self.began + self.seconds - margin


class Round:
    """An order and its tasks.

    Args:
        order: what is asked.
        run: what it belongs to.
        times: when.
        enough: how many results suffice; 0: those of all.
        figures: receives what comes of it.

    Attributes:
        order: as given.
        run: as given.
        times: as given; the server may ask again with others.
        enough: likewise.
        states: tasks by client.
        figures: of the round; None where nothing may be told.
        closed: set once no more results count.
        missed: how tasks count that had not come at the close.
        is_over: whether the run has gone on: nobody asks for the answer any more.
        waiters: number of the server's messages that wait for the answer.
        answer: the work at it.
        is_told: whether the log has what came of the round.
    """

    def __init__(
        self, order: Order, run: RunInfo, times: Times, enough: int, figures: Figures
    ) -> None:
        self.order, self.run, self.times, self.enough = order, run, times, enough
        self.id = order.identity
        self.closed = asyncio.Event()
        self.missed: Missed = "silent"
        self.is_over = self.is_told = False
        self.waiters, self.answer = 0, cast("asyncio.Task[bytes] | None", None)
        self.states = {
            client: State(task_id(self.id, client), client, order.count(run, client))
            for client in order.clients
        }
        # Counted, because each result looks at them: of ten thousand there would be 10^8 looks.
        self._waiting, self._accepted = len(self.states), 0
        self._figures = figures
        self.figures = None if order.private else RoundFigures(
            order.run_id, run.request.name, order.round_number, order.kind, len(order.clients)
        )  # fmt: skip
        self._parts = order.blobs()
        self._blobs = {name: blob_of(data) for name, data in self._parts.items()}

    @property
    def accepted(self) -> list[int]:
        """Clients whose results count, in the order's order."""
        return [c for c, s in self.states.items() if s.judged and s.judged.what == "accepted"]

    def begin(self, seen: Mapping[int, Seen | None], *, again: bool = False) -> None:
        """Tell what is asked, and leave out the phones that cannot do it.

        Args:
            seen: the phones, as far as they are known.
            again: whether an earlier process has begun it.
        """
        if self.figures:
            self._figures.asked(self.figures, () if again else list(self.states))
        if self.closed.is_set():
            return
        for client, phone in seen.items():
            state = self.states[client]
            if state.judged is None:
                if not state.count:
                    self.judge(state, Judged("refused", "unable: not described"))
                elif phone and (lack := lacking(self.order.needs, phone.abilities)):
                    self.judge(state, Judged("refused", f"unable: {lack}"))
        self.look()

    def offer(self, blobs: Blobs) -> None:
        """Let phones fetch what all of them need."""
        for name, blob in self._blobs.items():
            blobs.offer(blob.sha256, partial(self._parts.__getitem__, name))

    def withdraw(self, blobs: Blobs) -> None:
        """End that."""
        for blob in self._blobs.values():
            blobs.withdraw(blob.sha256)
        for state in self.states.values():
            if state.correction:
                blobs.withdraw(state.correction, state.client)

    def task(self, state: State, seen: Seen, blobs: Blobs) -> pb.Task:
        """What a phone is to do. Reads the client's memory; called in a thread."""
        order = self.order
        task = pb.Task(
            id=state.id,
            run=order.run_id,
            round=order.round_number,
            description=self.run.id,
            fingerprint=order.fingerprint,
            seconds_left=max(0.0, self.times.ends - time.monotonic()),
            num_examples=state.count,
            num_classes=order.num_classes,
            num_features=order.num_features,
            head=self._blobs.get("head"),
            preconditioner=self._blobs.get("preconditioner"),
        )
        if correction := order.correction(state.client):
            task.correction.CopyFrom(blob_of(correction))
            if not state.correction:
                state.correction = task.correction.sha256
                make = partial(order.correction, state.client)
                blobs.offer(state.correction, make, state.client)
        order.fill(task, state.client, seen.abilities)
        return task

    def judge(self, state: State, judged: Judged) -> None:
        """Note what became of a task."""
        self._note(state, judged)
        if judged.what == "late":
            self._figures.late(state.client, self.missed, self.figures)
        else:
            self._figures.judged(state.client, judged.what, judged.word, self.figures)

    def recall(self, state: State, judged: Judged) -> None:
        """Note what became of a task in an earlier process, which has counted it."""
        self._note(state, judged)
        if self.figures:
            self.figures.counts[judged.what] += 1

    def _note(self, state: State, judged: Judged) -> None:
        self._waiting -= state.judged is None
        self._accepted += judged.what == "accepted"
        state.judged = judged

    def spent(self, state: State, submission: pb.Submission) -> None:
        """Note a phone's time in the round, as far as it is possible."""
        if self.figures is None:
            return
        most = time.monotonic() - self.times.began
        said = (submission.fetch_seconds, submission.train_seconds, submission.upload_seconds)
        waited = state.given - self.times.began if state.given else 0.0
        for phase, seconds in zip(self.figures.seconds, (waited, *said), strict=True):
            self.figures.seconds[phase].append(min(seconds, most) if seconds > 0 else 0.0)

    @property
    def phases(self) -> bytes:
        """See ``TrainReply.phases``; empty where nothing was accepted, or nothing may be told."""
        seconds = self.figures.seconds.values() if self.figures else ()
        if not seconds or not all(seconds):
            return b""
        spread = [np.percentile(values, (50, 90)) for values in seconds]
        return np.array(spread, "<f8").tobytes()

    def look(self) -> None:
        """Close the round if nothing is to come, enough has come, or its time is over."""
        if self.closed.is_set():
            return
        is_over = time.monotonic() >= self.times.ends
        has_enough = self._accepted >= (self.enough or len(self.states))
        if is_over or has_enough or not self._waiting:
            self.close("over-selected" if has_enough else "silent")

    def close(self, missed: Missed) -> None:
        """Let no more results count."""
        self.closed.set()
        self.missed = missed
        for state in self.states.values():
            if state.judged is None:
                self._figures.judged(state.client, missed, "", self.figures)

    def rejected(self) -> list[Rejection]:
        """The clients without a result that counts, and why."""
        return [
            Rejection(client, _why(state.judged))
            for client, state in self.states.items()
            if state.judged is None or state.judged.what != "accepted"
        ]


def _why(judged: Judged | None) -> str:
    if judged is None or judged.what == "late":
        return "late"
    if judged.what == "refused" and judged.word == "unable":
        return judged.reason
    return f"{judged.what}: {judged.reason}"
