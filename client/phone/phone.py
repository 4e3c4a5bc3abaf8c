"""A phone's life: it checks in, prepares for runs, does tasks and sends what they gave."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from client.budget import Budget
from client.discretion import kind_of
from client.phone.blobs import Blobs
from client.phone.checks import check_able, check_description, check_task, order_of
from client.phone.kept import Kept, Result, Work
from client.phone.link import CallError, Link
from client.phone.pace import Pace
from client.phone.trainer import Computed, Trainer
from client.phone.uploads import sent
from common.errors import (
    BackboneError,
    DataError,
    DeclinedError,
    FedheadError,
    ProtocolError,
    SignatureError,
)
from common.phones.phones_pb2 import (
    DECLINED,
    DONE,
    FAILED,
    SGD,
    STATISTICS,
    Backbone,
    CheckInReply,
    CheckInRequest,
    Description,
    Holding,
    Submission,
    Task,
    Verdict,
)
from common.words import one_line

__all__ = ["WAIT_SECONDS", "Phone"]

logger = logging.getLogger("fedhead")

WAIT_SECONDS = 25
"""How long a gateway may hold a check-in."""

_UNLIMITED = Budget()
_MOST_BLOB_BYTES = 256 << 20
_LONGEST_UNMET_SECONDS = 60.0
_LONGEST_REASON = 200  # characters, by the protocol

Sleep = Callable[[float], Awaitable[object]]

_PROBLEMS: tuple[tuple[type[Exception], str], ...] = (
    (SignatureError, "unsigned-backbone"),
    (BackboneError, "foreign-fingerprint"),
    (DataError, "images"),
    (ProtocolError, "description"),
    (MemoryError, "memory"),
    (OSError, "disk"),
    (Exception, "error"),
)


class Phone:
    """The protocol's client. It knows no model: a trainer does the work.

    Args:
        link: to the gateway.
        trainer: computes.
        state: folder of what the phone keeps. Two processes must not share it.
        budget: the owner's limits.
        app: program and version, for the operator.
        pace: when it calls again.
        wait_seconds: how long the gateway may hold a check-in.

    Attributes:
        problem: why it cannot take part, as it tells the gateway; empty: nothing keeps it.
    """

    def __init__(
        self,
        link: Link,
        trainer: Trainer,
        state: Path,
        *,
        budget: Budget = _UNLIMITED,
        app: str = "",
        pace: Pace | None = None,
        wait_seconds: int = WAIT_SECONDS,
    ) -> None:
        self._link, self._trainer, self._state = link, trainer, state
        self._budget, self._app, self._wait = budget, app, wait_seconds
        self._pace = pace or Pace()
        self._kept = Kept(state)
        self._blobs = Blobs(state / "blobs", link, _MOST_BLOB_BYTES)
        self.problem = self._said = ""

    async def run(self, sleep: Sleep = asyncio.sleep) -> None:
        """Take turns for ever. No failure of network, server or disk ends it."""
        while True:
            try:
                pause = await self.turn()
            except (FedheadError, OSError) as exc:
                pause = self._pace.again()
                self._tell_once(str(exc))
            await sleep(pause)

    async def turn(self) -> float:
        """Check in, or go on with a task, up to the next pause.

        Returns:
            Seconds until the next turn is due.

        Raises:
            CallError: the gateway cannot be reached, or refuses.
            ProtocolError: it answers what no gateway answers.
            FedheadError, OSError: one of the phone's own files cannot be used.
        """
        if work := self._kept.work():
            return await self._go_on(work)
        request = await self._request()
        reply: CheckInReply = await self._link.check_in(request)
        match reply.WhichOneof("what"):
            case "later":
                self._said = ""
                return self._pace.later(reply.later)
            case "description":
                return await self._meet(reply.description, request)
            case "task":
                work = Work(reply.task, time.time() + reply.task.seconds_left)
                self._kept.begin(work)
                return await self._go_on(work)
            case _:
                raise ProtocolError("the gateway answers a check-in with nothing")

    def _tell_once(self, words: str) -> None:
        """Log a problem, but not again as long as it stays the same."""
        if words != self._said:
            logger.warning("%s; trying again later", words)
        self._said = words

    async def _request(self) -> CheckInRequest:
        holdings, problem = [], self.problem
        for description in self._kept.descriptions().values():
            try:
                train, test = await asyncio.to_thread(self._trainer.holding, description)
            except FedheadError as exc:
                problem = problem or _problem_of(exc)
                continue
            if description.private:
                train, test = min(train, 1), 0
            holdings.append(
                Holding(description=description.id, num_examples=train, num_test_examples=test)
            )
        return CheckInRequest(
            app=self._app,
            formats=self._trainer.formats,
            abilities=self._trainer.abilities,
            holdings=holdings,
            ready=await self._is_allowed(),
            wait_seconds=self._wait,
            problem="" if holdings else problem,
        )

    async def _is_allowed(self) -> bool:
        try:
            await asyncio.to_thread(self._budget.begin, self._state)
        except DeclinedError:
            return False
        return True

    async def _meet(self, description: Description, request: CheckInRequest) -> float:
        """Prepare for a run. If that is impossible, the next check-in says why."""
        if description.id in (holding.description for holding in request.holdings):
            raise ProtocolError(f"the gateway describes {description.id[:12]} again")
        try:
            check_description(description)
            backbone = self._chosen(description)
            if not await self._prepare(description, backbone, None):
                data = await self._blobs.get(backbone.file)
                await self._prepare(description, backbone, data)
                self._blobs.drop(backbone.file)
        except CallError:
            raise
        except Exception as exc:  # whatever it is, other runs may go well
            self._tell_once(f"cannot take part in run {one_line(description.name)}: {exc}")
            if request.holdings:  # tasks of other runs may come meanwhile
                return min(self._pace.again(), _LONGEST_UNMET_SECONDS)
            self.problem = _problem_of(exc)
            return self._pace.again()
        self.problem = ""
        self._kept.describe(description)
        return 0.0

    def _chosen(self, description: Description) -> Backbone:
        offered = {backbone.format: backbone for backbone in description.backbones}
        for name in self._trainer.formats:
            if name in offered:
                return offered[name]
        formats = " or ".join(self._trainer.formats)
        raise ProtocolError(f"there is no backbone in format {formats}")

    async def _prepare(
        self, description: Description, backbone: Backbone, data: bytes | None
    ) -> bool:
        return await asyncio.to_thread(self._trainer.prepare, description, backbone, data)

    async def _go_on(self, work: Work) -> float:
        """Do a task and send its result, as far as that was not done before a kill."""
        task = work.task
        result = self._kept.result(task.id)
        try:
            if result is None:
                if work.is_late:
                    logger.info("round %d: the task came too late", task.round)
                    self._kept.forget()
                    return self._pace.again()
                result = await self._result(task)
                self._kept.finish(result)
            verdict = await sent(self._link, task.id, result, timed=not self._is_private(task))
        except CallError as exc:
            if not exc.is_temporary:
                self._kept.forget()
            raise
        self._kept.forget()
        self._said = ""
        _tell(task, result, verdict)
        return self._pace.later(verdict.later)

    async def _result(self, task: Task) -> Result:
        submission = Submission(task=task.id, fingerprint=task.fingerprint)
        arrays = {}
        try:
            computed = await self._computed(task, submission)
            submission.outcome = DONE
            submission.num_examples, submission.correct = computed.num_examples, computed.correct
            submission.loss_before, submission.loss_after = (
                computed.loss_before,
                computed.loss_after,
            )
            submission.losses = computed.losses
            arrays = dict(computed.arrays)
        except CallError:
            raise
        except DeclinedError as exc:
            submission.outcome, submission.reason = DECLINED, str(exc)[:_LONGEST_REASON]
        except Exception as exc:  # the gateway must not wait for nothing
            if isinstance(exc, SignatureError | BackboneError):  # it may have been signed again
                self._kept.undescribe(task.description)
            submission.outcome, submission.reason = FAILED, kind_of(exc)[:_LONGEST_REASON]
        return Result(submission, arrays)

    async def _computed(self, task: Task, submission: Submission) -> Computed:
        """Do a task; notes in its submission how long that took."""
        description = self._kept.descriptions().get(task.description)
        if description is None:
            raise ProtocolError("the task is of a run that this phone has no description of")
        check_task(task, description)
        check_able(task, self._trainer.abilities)
        self._kept.use(description.id)
        await asyncio.to_thread(self._budget.begin, self._state)
        started = time.monotonic()
        blobs = [
            await self._blobs.get(b) for b in (task.head, task.correction, task.preconditioner)
        ]
        fetched = time.monotonic()
        trainer = self._trainer
        compute = {SGD: trainer.sgd, STATISTICS: trainer.statistics}.get(
            task.kind, trainer.evaluate
        )
        computed = await asyncio.to_thread(compute, order_of(task, description, *blobs))
        if not description.private:  # times tell numbers of examples
            submission.fetch_seconds = fetched - started
            submission.train_seconds = time.monotonic() - fetched
        return computed

    def _is_private(self, task: Task) -> bool:
        description = self._kept.descriptions().get(task.description)
        return description is None or description.private


def _problem_of(exc: Exception) -> str:
    """A word for programs, and a sentence without the owner's data."""
    word = next(word for kind, word in _PROBLEMS if isinstance(exc, kind))
    return f"{word}: {kind_of(exc)}"[:_LONGEST_REASON]


def _tell(task: Task, result: Result, verdict: Verdict) -> None:
    """Tell the phone's owner what came of a task."""
    did = result.submission
    words = {DONE: f"sent {', '.join(result.arrays) or 'its figures'}"}.get(
        did.outcome, one_line(did.reason)
    )
    said = Verdict.What.Name(verdict.what).lower() if verdict.what in Verdict.What.values() else "?"
    reason = f" ({one_line(verdict.reason)})" if verdict.reason else ""
    logger.info("round %d: %s: %s%s", task.round, words, said, reason)
