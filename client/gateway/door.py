"""Access for phones: strangers are refused before their message is read.

For a call with one message, gRPC waits for the message without a limit. So each call is handled
here as one with a stream of messages, which looks the same to callers. Then the caller is known
before the message is waited for.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio

from client.gateway.place import Place
from common.delivery.tokens import device_of, token_path, token_state
from common.errors import DeliveryError
from common.identity import client_of_phone

__all__ = ["Door", "Phone", "calling"]

Context = grpc.aio.ServicerContext[Any, Any]

_CALLS = 4  # of one phone at once: its present call, and remains of broken connections
_SECONDS = 30.0  # for a message to arrive
_KNOWN = 50_000  # phones whose tokens are remembered
_READERS = 4  # of files of tokens at once
_SAY_SECONDS = 60.0  # between two log lines of one name's refusals


@dataclass(frozen=True)
class Phone:
    """A phone that has shown its token.

    Attributes:
        name: of its token.
        client: its number in all runs.
    """

    name: str
    client: int


calling: ContextVar[Phone] = ContextVar("calling")
"""The phone whose call is handled."""

_Stamp = tuple[int, int, int] | None


@dataclass(frozen=True)
class _Known:
    """What was found of a token.

    Attributes:
        token: the file with its hash.
        device_key: a file that no phone has.
        stamp: of the token's file, when it was read.
        found: who it is.
    """

    token: Path
    device_key: Path
    stamp: _Stamp
    found: Phone


class Door(grpc.aio.ServerInterceptor):
    """Checks the calls of all methods.

    Args:
        place: the gateway's files.
        count: counts a refused call by its reason.
    """

    def __init__(self, place: Place, count: Callable[[str], None]) -> None:
        self._place, self._count = place, count
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._calls: Counter[str] = Counter()
        self._reading = asyncio.Semaphore(_READERS)
        self._said: dict[str, float] = {}

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The checked method; None if there is no such method."""
        method = await continuation(handler_call_details)
        if method is None or method.unary_unary is None:
            return None
        # grpc's types are those of its other kind of server.
        unary = cast("Callable[[Any, Context], Awaitable[Any]]", method.unary_unary)
        parse = method.request_deserializer

        async def behind(messages: AsyncIterator[bytes], context: Context) -> Any:
            phone = await self._enter(context)
            try:
                request = await _first(messages, parse, context)
                calling.set(phone)
                return await unary(request, context)
            finally:
                self._calls[phone.name] -= 1
                if not self._calls[phone.name]:
                    del self._calls[phone.name]

        return grpc.stream_unary_rpc_method_handler(behind, None, method.response_serializer)

    async def _enter(self, context: Context) -> Phone:
        phone = await self.caller(context)
        if isinstance(phone, str):
            self._count(phone)
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is not valid")
            raise grpc.aio.AbortError  # for the types' sake: abort has raised it
        if self._calls[phone.name] >= _CALLS:
            self._count("too-many-calls")
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls at once")
        self._calls[phone.name] += 1
        return phone

    async def caller(self, context: Context) -> Phone | str:
        """The calling phone, or the reason why it is none, as it is counted."""
        header = dict(context.invocation_metadata() or ()).get("authorization", "")
        token = str(header).removeprefix("Bearer ")
        # Not the token itself, which a stranger may make long.
        key = hashlib.sha256(token.encode()).digest()
        known = self._known.get(key)
        # Each change of a token's file replaces it: what was found of the same file still holds.
        if known and known.stamp == _stamp(known.token):
            return "not-a-phone" if known.device_key.exists() else known.found
        async with self._reading:
            read = await asyncio.to_thread(self._read, token)
        if isinstance(read, str):  # strangers are not remembered: they would crowd phones out
            self._known.pop(key, None)
            return read
        self._known[key] = read
        if len(self._known) > _KNOWN:
            self._known.popitem(last=False)
        return read.found

    def _read(self, token: str) -> _Known | str:
        name = token.rpartition(".")[0]
        try:
            path, device_key = token_path(self._place.delivery, name), self._place.device_key(name)
        except DeliveryError:
            return "wrong-token"
        stamp = _stamp(path)
        said = name if stamp else ""
        now = time.monotonic()
        quietly = now - self._said.get(said, -inf) < _SAY_SECONDS
        if device_of(self._place.delivery, token, quietly=quietly) == name:
            if device_key.exists():
                return "not-a-phone"
            return _Known(path, device_key, stamp, Phone(name, client_of_phone(name)))
        if not quietly:
            self._said[said] = now  # as many names as there are tokens, at most
        is_revoked = token_state(self._place.delivery, name) == "revoked"
        return "revoked-token" if is_revoked else "wrong-token"


def _stamp(path: Path) -> _Stamp:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_mode


async def _first(
    messages: AsyncIterator[bytes], parse: Callable[[bytes], Any] | None, context: Context
) -> Any:
    try:
        async with asyncio.timeout(_SECONDS):  # wait_for would make a task for each call
            data = await anext(messages)
        return parse(data) if parse else data
    except (TimeoutError, StopAsyncIteration):
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a call without a message")
    except Exception as exc:  # protobuf's error, of whichever implementation
        if isinstance(exc, grpc.RpcError | grpc.aio.AbortError):
            raise
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a message that cannot be read")
