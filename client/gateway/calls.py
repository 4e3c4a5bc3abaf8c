"""The phones' calls."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any, NoReturn, TypeVar

import grpc
import grpc.aio

from client.gateway.backbones import Blobs, backbones_in, offer_backbones
from client.gateway.door import Phone, calling
from client.gateway.figures import Figures
from client.gateway.models import DamagedModelError, Models, NoModelError
from client.gateway.place import Place
from client.gateway.presence import Presence, Seen
from client.gateway.round import State
from client.gateway.rounds import Rounds
from client.gateway.runs import Runs
from client.gateway.uploads import (
    DamagedUploadError,
    UploadError,
    WrongOffsetError,
)
from common.errors import DeliveryError
from common.phones import phones_pb2 as pb
from common.phones.wire import INLINE_UPDATE, LONGEST_WAIT, PART
from common.words import said_of

__all__ = ["Calls"]

logger = logging.getLogger("fedhead.gateway")

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]

_MOST_WORDS, _LONGEST_WORD = 32, 40  # abilities and formats
_MOST_HOLDINGS, _LONGEST_APP, _LONGEST_REASON = 8, 100, 200
_PROBLEM = re.compile("[a-z][a-z-]{0,39}")
_MOST_PROBLEMS = 50
_TRY_AGAIN = 3600.0  # seconds until a phone with a problem gets the same description again
_CODES: Mapping[type[Exception], grpc.StatusCode] = {
    WrongOffsetError: grpc.StatusCode.OUT_OF_RANGE,
    DamagedUploadError: grpc.StatusCode.DATA_LOSS,
    UploadError: grpc.StatusCode.INVALID_ARGUMENT,
}


class Calls:
    """See ``common.phones.wire.Servicer``.

    Args:
        place: the gateway's files.
        runs: what is known of runs.
        presence: the phones.
        rounds: the rounds.
        blobs: what phones fetch.
        figures: the counters.
        caller: who calls, or why it is nobody; see ``Door.caller``.
    """

    def __init__(
        self,
        place: Place,
        runs: Runs,
        presence: Presence,
        rounds: Rounds,
        blobs: Blobs,
        figures: Figures,
        caller: Callable[[Context], Awaitable[Phone | str]],
    ) -> None:
        self._place, self._runs, self._presence = place, runs, presence
        self._rounds, self._blobs, self._figures = rounds, blobs, figures
        self._caller = caller
        self._models = Models(place.models, blobs)
        self._problems: set[str] = set()
        self._working: set[asyncio.Task[Any]] = set()

    async def check_in(self, request: pb.CheckInRequest, context: Context) -> pb.CheckInReply:
        """Something to do, or when to come back."""
        phone = calling.get()
        if problem := _odd(request):
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, problem)
        seen = self._presence.of(phone)
        if not seen.may_call():
            self._figures.count("too-many-calls")
            await _abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "too many check-ins")
        if request.problem and request.problem != seen.problem:
            self._figures.count(self._problem(request.problem))
        seen = self._presence.check_in(phone, request, self._runs.private())
        ends = time.monotonic() + min(request.wait_seconds, LONGEST_WAIT)
        while (reply := await self._found(seen)) is None:
            left = ends - time.monotonic()
            if not (seen.ready and self._is_forming()):
                return pb.CheckInReply(later=self._presence.later())
            if left <= 0 or not await self._presence.hold(phone.client, left):
                return pb.CheckInReply(later=self._presence.later(soon=seen.waits))
            if isinstance(why := await self._caller(context), str):  # revoked while it waited
                self._figures.count(why)
                await _abort(context, grpc.StatusCode.UNAUTHENTICATED, "the token is not valid")
            self._presence.come_back(phone)
        return reply

    def _problem(self, words: str) -> str:
        """A problem as it is counted; phones cannot make counters without end."""
        word = words.partition(":")[0].strip()
        if not _PROBLEM.fullmatch(word):
            return "other-problem"
        if word not in self._problems and len(self._problems) >= _MOST_PROBLEMS:
            return "other-problem"
        self._problems.add(word)
        return word

    def _is_forming(self) -> bool:
        return bool(self._rounds.open) or any(True for _ in self._runs.active())

    async def _found(self, seen: Seen) -> pb.CheckInReply | None:
        if not seen.ready:
            return None
        if found := self._rounds.next_task(seen):
            round_, state = found
            task = await asyncio.to_thread(round_.task, state, seen, self._blobs)
            state.given = state.given or time.monotonic()
            return pb.CheckInReply(task=task)
        description = self._description(seen)
        return pb.CheckInReply(description=description) if description else None

    def _description(self, seen: Seen) -> pb.Description | None:
        """Of a run that the phone has not met; a phone with a problem may try again later."""
        for run in self._runs.active():
            if run.id in seen.holdings:
                continue
            folder = self._place.backbones / run.request.fingerprint
            backbones = backbones_in(folder, run.request.classes)
            if not any(backbone.format in seen.formats for backbone in backbones):
                continue
            found = run.description(seen.phone.client, backbones)
            told = hash(found.SerializeToString(deterministic=True))
            now = time.monotonic()
            last, when = seen.told.get(run.id, (0, 0.0))
            if seen.problem and last == told and now - when < _TRY_AGAIN:
                continue
            seen.told[run.id] = told, now
            offer_backbones(self._blobs, folder)
            return found
        return None

    async def fetch(self, request: pb.FetchRequest, context: Context) -> pb.Part:
        """A part of a blob."""
        client, sha256 = calling.get().client, request.sha256
        if not self._blobs.has(sha256, client):
            await _abort(context, grpc.StatusCode.NOT_FOUND, "no such blob")
        try:
            size, data = await asyncio.to_thread(
                self._blobs.part, sha256, client, request.offset, PART
            )
        except (KeyError, OSError):
            await _abort(context, grpc.StatusCode.NOT_FOUND, "no such blob")
        if request.offset > size:
            what = f"offset {request.offset}, but the blob has {size} bytes"
            await _abort(context, grpc.StatusCode.OUT_OF_RANGE, what)
        return pb.Part(sha256=sha256, size=size, offset=request.offset, data=data)

    async def latest(self, request: pb.LatestRequest, context: Context) -> pb.Model:
        """The newest version of a finished model."""
        if not self._presence.of(calling.get()).may_call():
            self._figures.count("too-many-calls")
            await _abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "too many questions")
        try:
            return await asyncio.to_thread(self._models.newest, request.name)
        except DeliveryError as exc:
            codes = {
                NoModelError: grpc.StatusCode.NOT_FOUND,
                DamagedModelError: grpc.StatusCode.DATA_LOSS,
            }
            code = codes.get(type(exc), grpc.StatusCode.INVALID_ARGUMENT)
            await _abort(context, code, str(exc))

    async def upload(self, request: pb.Part, context: Context) -> pb.UploadReply:
        """Take a part of an array."""
        found = self._rounds.find(request.task, calling.get().client)
        if found is None or found[0].closed.is_set() or found[1].judged:
            await _abort(context, grpc.StatusCode.NOT_FOUND, "no such task of this phone")
        round_, state = found
        sizes = round_.order.sizes()
        if len(request.data) > PART or request.size > max(sizes.values(), default=0):
            what = (
                f"a part of {len(request.data)} bytes of {request.size}, more than the task needs"
            )
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, what)
        await self._at_once(state, context)
        part = (request.sha256, request.size, request.offset, request.data)
        try:
            size = await self._whole(self._rounds.add_part(state, part, len(sizes)))
        except tuple(_CODES) as exc:
            await self._refuse_upload(exc, context)
        except OSError as exc:
            await _no_room(exc, context)
        return pb.UploadReply(size=size)

    async def _at_once(self, state: State, context: Context) -> None:
        """End a call while an earlier one of its task is looked at: none waits for its turn."""
        if state.lock.locked():
            words = "an earlier call of the task is looked at"
            await _abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, words)

    async def _whole(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something to its end, even if the phone hangs up meanwhile: it may come again."""
        task = asyncio.create_task(work)
        self._working.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._working.discard(task)
        if not task.cancelled():
            task.exception()  # asked for, because nobody may wait for it any more

    async def submit(self, request: pb.Submission, context: Context) -> pb.Verdict:
        """Take a task's result."""
        phone = calling.get()
        later = self._presence.later(soon=self._presence.of(phone).waits)
        found = self._rounds.find(request.task, phone.client)
        # The time of a private result would tell who took part.
        untold = found is not None and found[0].order.private
        self._presence.come_back(phone, untold=untold)
        if found is None:
            if judged := self._rounds.past.judged(request.task, phone.client):
                return judged.verdict(later)
            self._figures.count("unknown-task")
            await _abort(context, grpc.StatusCode.NOT_FOUND, "no such task of this phone")
        if problem := _odd_result(request):
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, problem)
        if found[0].order.private:  # times tell numbers of examples
            for name in ("fetch_seconds", "train_seconds", "upload_seconds"):
                request.ClearField(name)
        await self._at_once(found[1], context)
        try:
            judged = await self._whole(self._rounds.settle(*found, request))
        except tuple(_CODES) as exc:
            await self._refuse_upload(exc, context)
        except OSError as exc:
            await _no_room(exc, context)
        return judged.verdict(later)

    async def _refuse_upload(self, problem: Exception, context: Context) -> NoReturn:
        if isinstance(problem, DamagedUploadError):
            self._figures.count("damaged-upload")
        await _abort(context, _CODES[type(problem)], str(problem))


async def _abort(context: Context, code: grpc.StatusCode, words: str) -> NoReturn:
    await context.abort(code, words)
    raise AssertionError("unreachable")


async def _no_room(problem: OSError, context: Context) -> NoReturn:
    logger.warning("what a phone sends cannot be kept: %s", said_of(problem))
    await _abort(context, grpc.StatusCode.UNAVAILABLE, "the gateway cannot keep it now")


def _odd(request: pb.CheckInRequest) -> str:
    """What no phone of the protocol says; empty if all is well."""
    words = [*request.formats, *request.abilities]
    if len(request.app) > _LONGEST_APP or len(request.problem) > _LONGEST_REASON:
        return f"app or problem is longer than {_LONGEST_APP} or {_LONGEST_REASON} characters"
    if len(words) > _MOST_WORDS or any(len(word) > _LONGEST_WORD for word in words):
        return f"more than {_MOST_WORDS} formats and abilities, or one is too long"
    if len(request.holdings) > _MOST_HOLDINGS:
        return f"{len(request.holdings)} holdings, expected at most {_MOST_HOLDINGS}"
    if any(len(holding.description) > 2 * _LONGEST_WORD for holding in request.holdings):
        return "a holding's description has 64 characters"
    return ""


def _odd_result(request: pb.Submission) -> str:
    """The same of a submission."""
    if request.outcome not in (pb.Outcome.DONE, pb.Outcome.DECLINED, pb.Outcome.FAILED):
        return "the outcome is missing"
    if len(request.reason) > _LONGEST_REASON:
        return f"the reason is longer than {_LONGEST_REASON} characters"
    return _odd_arrays(request.arrays)


def _odd_arrays(arrays: Iterable[pb.Array]) -> str:
    fields = [array.field for array in arrays]
    if len({*fields}) < len(fields) or len(fields) > _MOST_WORDS:
        return "a field is sent twice, or there are too many"
    if any(len(array.data) > INLINE_UPDATE or (array.data and array.sha256) for array in arrays):
        return f"an array in a submission has at most {INLINE_UPDATE} bytes; others are uploaded"
    return ""
