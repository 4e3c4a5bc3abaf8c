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


async def sent(link: Link, task: str, result: Result) -> Verdict:
    """Send a result. It may be sent any number of times; the gateway answers the same.

    Raises:
        CallError: the gateway cannot be reached; or it knows no such task, or refuses.
        ProtocolError: it claims to have more bytes than there are.
    """
    started = time.monotonic()
    arrays = []
    for field, data in result.arrays.items():
        if len(data) <= INLINE_UPDATE:
            arrays.append(Array(field=field, data=data))
        else:
            arrays.append(Array(field=field, sha256=await _uploaded(link, task, data)))
    submission = Submission()
    submission.CopyFrom(result.submission)
    submission.arrays.extend(arrays)
    submission.upload_seconds = time.monotonic() - started
    return await link.submit(submission)


async def _uploaded(link: Link, task: str, data: bytes) -> str:
    """Upload an array from where an earlier upload ended; returns its SHA-256."""
    digest = hashlib.sha256(data).hexdigest()

    async def put(offset: int, part: bytes) -> int:
        message = Part(task=task, sha256=digest, size=len(data), offset=offset, data=part)
        return await link.upload(message)

    arrived, failures = await put(0, b""), 0
    while arrived < len(data):
        before = arrived
        try:
            arrived = await put(arrived, data[arrived : arrived + PART])
        except CallError as exc:
            if exc.code not in (grpc.StatusCode.OUT_OF_RANGE, grpc.StatusCode.DATA_LOSS):
                raise
            failures += 1
            if failures == _TRIES:
                raise
            arrived = await put(0, b"")
            continue
        if not before < arrived <= len(data):
            raise ProtocolError(
                f"the gateway has {arrived} bytes of an array after {before}, expected up to "
                f"{len(data)}"
            )
    return digest
