"""One phone of a fleet: it speaks the gateway's protocol and keeps its own clock."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from common.datasets.split import stratified_split
from common.partition import evenly
from common.phones.phones_pb2 import (
    DECLINED,
    Blob,
    CheckInReply,
    CheckInRequest,
    Description,
    FetchRequest,
    Holding,
    Later,
    Part,
    Submission,
    Task,
    UploadReply,
    Verdict,
)
from common.phones.wire import INLINE_UPDATE, LONGEST_WAIT, PART, Stub
from common.seeding import Purpose
from common.types import FeatureSet, IntArray
from simulations.bench.fleet.profile import Profile, Zone
from simulations.bench.fleet.tally import Tally
from simulations.bench.fleet.work import ABILITIES, Arrays, perform

__all__ = ["Phone", "World"]

_FIRST_PAUSE, _LONGEST_PAUSE = 2.0, 60.0  # after a call that failed; a day here is minutes
_CALL_SECONDS = 60.0
_AGAIN = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
)
_FAULTS = ("silent", "late", "declined")
_KNOWN_TASKS = 64

Reply = TypeVar("Reply", bound=Message)


@dataclass(eq=False)
class World:
    """What the phones of a fleet share: one machine, and the images.

    Attributes:
        images: those of all phones.
        shares: positions in them; phone i has those of share i modulo their number.
        profile: when phones are there.
        faults: share of the tasks of which nothing comes in time.
        draws: of all that phones draw.
        tally: what they count.
        began: the beginning, on the monotonic clock.
    """

    images: FeatureSet
    shares: list[IntArray]
    profile: Profile
    faults: float
    draws: random.Random
    tally: Tally
    began: float = field(default_factory=time.monotonic)

    @property
    def now(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.began


class Phone:
    """One phone.

    Args:
        number: from 0.
        token: what its calls bring.
        stub: of its connection.
        world: what it shares with the others.
        zone: its time zone.
        starts: seconds after the beginning at which it is first there.
    """

    def __init__(
        self, number: int, token: str, stub: Stub, world: World, zone: Zone, starts: float
    ) -> None:
        self._number, self._stub, self._world, self._zone = number, stub, world, zone
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._starts = starts
        # Nobody wakes up at the second at which the zone does.
        self._shift = world.draws.uniform(-0.02, 0.02) if zone.awake < 1 else 0.0
        self._pause = _FIRST_PAUSE
        self._parts: dict[str, tuple[IntArray, IntArray]] = {}
        self._given: list[str] = []

    async def live(self) -> None:
        """Call the gateway again and again, until it is cancelled."""
        await asyncio.sleep(self._starts)
        while True:
            await self._sleep_until_awake()
            try:
                later = await self._turn()
            except grpc.aio.AioRpcError as exc:
                self._world.tally.fail(exc.code().name, str(exc.details()), self._world.now)
                if exc.code() in _AGAIN:
                    self._pause = min(2 * self._pause, _LONGEST_PAUSE)
                await asyncio.sleep(self._world.draws.uniform(0.5, 1.5) * self._pause)
                continue
            self._pause = _FIRST_PAUSE
            drawn = self._world.draws.uniform(later.min_seconds, later.max_seconds)
            await asyncio.sleep(drawn / self._zone.haste)

    async def _sleep_until_awake(self) -> None:
        world = self._world
        while left := world.profile.seconds_until_awake(self._zone, self._shift, world.now):
            await asyncio.sleep(left + 1e-3)

    async def _turn(self) -> Later:
        """Check in, and do what there is to do."""
        for _ in range(3):  # a description for each run that the gateway may have
            reply = await self._check_in()
            what = reply.WhichOneof("what")
            if what == "later":
                return reply.later
            if what == "task":
                return await self._do(reply.task)
            self._meet(reply.description)
        return reply.later

    async def _check_in(self) -> CheckInReply:
        tally, world = self._world.tally, self._world
        holdings = [
            Holding(description=name, num_examples=len(train), num_test_examples=len(test))
            for name, (train, test) in self._parts.items()
        ]
        request = CheckInRequest(
            app="fleet-simulate",
            formats=["torch"],
            abilities=ABILITIES,
            holdings=holdings[-8:],
            ready=True,
            wait_seconds=LONGEST_WAIT if self._zone.haste == 1 else 0,
        )
        tally.check_ins[self._number] += 1
        tally.arrivals.append(world.now)
        tally.held += 1
        tally.most_held = max(tally.most_held, tally.held)
        began = time.monotonic()
        try:
            reply: CheckInReply = await self._call(self._stub.check_in, "CheckIn", request)
        finally:
            tally.held -= 1
            tally.waits.append(time.monotonic() - began)
        return reply

    def _meet(self, description: Description) -> None:
        """Split the own images as the description says. Their features are there."""
        world = self._world
        mine = world.shares[self._number % len(world.shares)]
        mine = mine[evenly(len(mine), description.max_examples)]
        train, test = stratified_split(
            world.images.labels[mine], description.test_fraction, description.seed,
            Purpose.LOCAL_SPLIT, description.client,
        )  # fmt: skip
        self._parts[description.id] = mine[train], mine[test]

    async def _do(self, task: Task) -> Later:
        """Do a task, or fail to, and say when to come back."""
        world, tally = self._world, self._world.tally
        if task.id not in self._given:  # a phone that fell silent gets its task again
            self._given = [*self._given[-_KNOWN_TASKS:], task.id]
            tally.tasks[self._number] += 1
        fails = world.draws.random() < world.faults
        fault = world.draws.choice(_FAULTS) if fails else ""
        if fault:
            tally.given[fault] += 1
        if fault == "silent":
            await asyncio.sleep(task.seconds_left + 1)
            return Later(min_seconds=0, max_seconds=1)
        if fault == "declined":
            declined = Submission(task=task.id, outcome=DECLINED, reason="unplugged")
            return await self._submit(declined)
        began = time.monotonic()
        head, correction = await self._blob(task.head), await self._blob(task.correction)
        fetched = time.monotonic()
        arrays = Arrays.read(task, head, correction)
        done = perform(task, arrays, world.images, *self._parts[task.description])
        done.fetch_seconds, done.train_seconds = fetched - began, time.monotonic() - fetched
        if fault == "late":
            await asyncio.sleep(task.seconds_left + 1)
        began = time.monotonic()
        await self._upload(done)
        done.upload_seconds = time.monotonic() - began
        return await self._submit(done)

    async def _submit(self, done: Submission) -> Later:
        tally, began = self._world.tally, time.monotonic()
        verdict: Verdict = await self._call(self._stub.submit, "Submit", done)
        tally.submits.append(time.monotonic() - began)
        name = Verdict.What.Name(verdict.what).lower()
        tally.verdicts[f"refused: {verdict.reason}" if name == "refused" else name] += 1
        if verdict.what == Verdict.ACCEPTED:
            tally.done_at.append(self._world.now)
        return verdict.later

    async def _upload(self, done: Submission) -> None:
        """Upload arrays that are too large to go with the submission."""
        for own in done.arrays:
            if len(own.data) <= INLINE_UPDATE:
                continue
            data, sha256, offset = own.data, hashlib.sha256(own.data).hexdigest(), 0
            while offset < len(data):
                part = Part(
                    task=done.task, sha256=sha256, size=len(data), offset=offset,
                    data=data[offset : offset + PART],
                )  # fmt: skip
                reply: UploadReply = await self._call(self._stub.upload, "Upload", part)
                offset = reply.size
            own.data, own.sha256 = b"", sha256

    async def _blob(self, blob: Blob) -> bytes:
        """A blob's bytes, fetched if they did not come along."""
        if not blob.sha256 or blob.data:
            return blob.data
        data = b""
        while len(data) < blob.size:
            request = FetchRequest(sha256=blob.sha256, offset=len(data))
            part: Part = await self._call(self._stub.fetch, "Fetch", request)
            data += part.data
        return data

    async def _call(
        self, method: Callable[..., Awaitable[Reply]], name: str, request: Message
    ) -> Reply:
        tally = self._world.tally
        reply = await method(request, metadata=self._metadata, timeout=_CALL_SECONDS)
        tally.calls[name] += 1
        tally.up_bytes += request.ByteSize()
        tally.down_bytes += reply.ByteSize()
        return reply
