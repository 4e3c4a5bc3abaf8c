"""A phone's calls to its gateway. Every failure is one clear line."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from client.delivery.remote import read_authority, read_token, why_unavailable
from common.errors import FedheadError
from common.phones.phones_pb2 import (
    CheckInReply,
    CheckInRequest,
    FetchRequest,
    Part,
    Submission,
    UploadReply,
    Verdict,
)
from common.phones.wire import CHANNEL_OPTIONS, Stub
from common.words import one_line

__all__ = ["CallError", "Link"]

_TIMEOUT_SECONDS = 30.0
_LONGEST_ANSWER = 160  # characters of a server's text

_TEMPORARY = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        # A token may be issued anew, and a server may have lost its list for a while.
        grpc.StatusCode.UNAUTHENTICATED,
        # What gRPC makes of a connection that broke in the middle, or of a proxy's own pages.
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.CANCELLED,
    }
)


class CallError(FedheadError):
    """A call that failed.

    Attributes:
        code: gRPC's status.
    """

    def __init__(self, words: str, code: grpc.StatusCode) -> None:
        super().__init__(words)
        self.code = code

    @property
    def is_temporary(self) -> bool:
        """Whether the same call may succeed later."""
        return self.code in _TEMPORARY


class Link:
    """A connection to a gateway. It is opened by the first call, and again after ``reopen``.

    Args:
        address: host and port; the host must be a name in the gateway's certificate.
        authority: file with PEM certificates of the only authorities to trust.
        token: file of the phone's token; refused if users other than its owner can read it.
    """

    def __init__(self, address: str, *, authority: Path, token: Path) -> None:
        self._address, self._authority, self._token = address, authority, token
        self._channel: grpc.aio.Channel | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection; the next call makes another."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def check_in(self, request: CheckInRequest) -> CheckInReply:
        """Say that the phone is there.

        Raises:
            CallError: as all calls.
            DeliveryError: the authority's or the token's file holds something else.
            OSError: one of them cannot be read.
        """
        seconds = _TIMEOUT_SECONDS + request.wait_seconds
        reply: CheckInReply = await self._call("check-in", lambda s: s.check_in, request, seconds)
        return reply

    async def fetch(self, request: FetchRequest) -> Part:
        """A part of a blob."""
        part: Part = await self._call(f"blob {request.sha256[:12]}", lambda s: s.fetch, request)
        return part

    async def upload(self, part: Part) -> int:
        """Send a part of an array; returns how many bytes of the array have arrived."""
        reply: UploadReply = await self._call(f"task {part.task[:12]}", lambda s: s.upload, part)
        return reply.size

    async def submit(self, submission: Submission) -> Verdict:
        """Send a task's result."""
        what = f"task {submission.task[:12]}"
        verdict: Verdict = await self._call(what, lambda s: s.submit, submission)
        return verdict

    async def _call(
        self,
        what: str,
        method: Callable[[Stub], Callable[..., Awaitable[Any]]],
        request: object,
        seconds: float = _TIMEOUT_SECONDS,
    ) -> Any:
        if self._channel is None:
            credentials = grpc.ssl_channel_credentials(read_authority(self._authority))
            self._channel = grpc.aio.secure_channel(self._address, credentials, CHANNEL_OPTIONS)
        stub = Stub(self._channel)
        metadata = (("authorization", f"Bearer {read_token(self._token)}"),)
        try:
            return await method(stub)(request, metadata=metadata, timeout=seconds)
        except grpc.aio.AioRpcError as exc:
            code, details = exc.code(), exc.details() or ""
            if code is grpc.StatusCode.UNAVAILABLE:
                details = why_unavailable(details, self._authority)
            elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
                details = f"no answer within {seconds:g} s"
            said = one_line(details, _LONGEST_ANSWER) or code.name
            raise CallError(f"{self._address}: {what}: {said}", code) from exc
