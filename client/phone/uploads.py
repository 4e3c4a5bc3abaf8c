"""Sends a task's result: large arrays in parts, which may be interrupted, and then the rest."""

from __future__ import annotations

import hashlib
import time

import grpc

from client.phone.kept import Result
from client.phone.link import CallError, Link
from common.errors import ProtocolError
from common.phones.phones_pb2 import Array, Part, Submission, Verdict
from common.phones.wire import INLINE_UPDATE, PART

__all__ = ["sent"]

_TRIES = 5  # of an upload that the gateway has lost
_LOST = (grpc.StatusCode.OUT_OF_RANGE, grpc.StatusCode.DATA_LOSS)


async def sent(link: Link, task: str, result: Result, *, timed: bool = True) -> Verdict:
    """Send a result. It may be sent any number of times; the gateway answers the same.

    Args:
        link: to the gateway.
        task: its id.
        result: of the task.
        timed: whether the gateway may know how long the uploads took.

    Raises:
        CallError: the gateway cannot be reached; or it knows no such task, or refuses.
        ProtocolError: it claims to have more bytes than there are.
    """
    large = {name: data for name, data in result.arrays.items() if len(data) > INLINE_UPDATE}
    submission = Submission()
    submission.CopyFrom(result.submission)
    for field, data in result.arrays.items():
        if field in large:
            submission.arrays.append(Array(field=field, sha256=_sha256(data)))
        else:
            submission.arrays.append(Array(field=field, data=data))
    started, failures = time.monotonic(), 0
    while True:
        try:
            for data in large.values():
                await _upload(link, task, data)
        except CallError as exc:
            # The result may have arrived before, and only the verdict was lost: ask for that.
            if exc.code is not grpc.StatusCode.NOT_FOUND:
                raise
        if timed:
            submission.upload_seconds = time.monotonic() - started
        try:
            return await link.submit(submission)
        except CallError as exc:  # the gateway has lost what had arrived
            failures += 1
            if exc.code not in _LOST or failures == _TRIES:
                raise


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def _upload(link: Link, task: str, data: bytes) -> None:
    """Upload an array from where an earlier upload ended."""
    digest = _sha256(data)

    async def put(offset: int, part: bytes) -> int:
        message = Part(task=task, sha256=digest, size=len(data), offset=offset, data=part)
        return await link.upload(message)

    arrived, failures = await put(0, b""), 0
    while arrived < len(data):
        before = arrived
        try:
            arrived = await put(arrived, data[arrived : arrived + PART])
        except CallError as exc:
            failures += 1
            if exc.code not in _LOST or failures == _TRIES:
                raise
            arrived = await put(0, b"")
            continue
        if not before < arrived <= len(data):
            raise ProtocolError(
                f"the gateway has {arrived} bytes of an array after {before}, expected up to "
                f"{len(data)}"
            )
