"""Checks requests to Flower's SuperLink, at the devices' port and at the operators' port.

Both are ASGI middleware. They answer a stranger with a bare status, and no code of Flower's sees a
request before it is let in.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from simulations.deploy.app import has_signed
from simulations.deploy.gate import Buckets, Connection, Gate
from simulations.deploy.operator import SECRET_HEADER

__all__ = ["DevicesDoor", "OperatorsDoor"]

logger = logging.getLogger("uvicorn.error")  # the log of Flower's SuperLink

Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Event, Receive, Send], Awaitable[None]]

# Flower's.
_PUBLIC_KEY_HEADER, _SIGNATURE_HEADER = b"flwr-public-key", b"flwr-signature"
_TIMESTAMP_HEADER = b"flwr-timestamp"

_LONGEST_HEADER = 1024
_LOOK_AGAIN_SECONDS = 10.0
_STRANGERS_PER_SECOND, _STRANGERS_AT_ONCE = 20.0, 100.0
_AT_ONCE_SECONDS = 10.0
_TELL_SECONDS = 60.0
# Number of largest requests at the same time. Flower's SuperNode sends two objects and a heartbeat.
_MOST_OF_A_DEVICE, _MOST_TOGETHER = 3, 16


class DevicesDoor:
    """Lets registered devices through to Flower's routes for devices.

    A public key is not a secret. So a request counts as the device's, and uses the device's share
    of memory, only if the private key has signed the time. Flower checks that again.

    Args:
        app: Flower's app.
        gate: this port's gate.
        routes: methods and paths that are let through, in exactly this spelling.
        is_registered: says whether a public key is registered; may take a while.
        most_bytes: largest size of one request.
        rate: requests per second of one device.
    """

    def __init__(
        self,
        app: App,
        gate: Gate,
        routes: Collection[tuple[str, str]],
        is_registered: Callable[[bytes], Awaitable[bool]],
        *,
        most_bytes: int,
        rate: float,
    ) -> None:
        self._app, self._gate, self._routes = app, gate, frozenset(routes)
        self._is_registered, self._most_bytes = is_registered, most_bytes
        self._devices = Buckets(rate, _AT_ONCE_SECONDS * rate)
        self._strangers = Buckets(_STRANGERS_PER_SECOND, _STRANGERS_AT_ONCE)
        self._seen: dict[bytes, float] = {}
        self._bytes: Counter[bytes] = Counter()  # bytes of unanswered requests, by device
        self._told, self._unknown = -_TELL_SECONDS, 0

    async def __call__(self, scope: Event, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise NotImplementedError(scope["type"])
        connection: Connection = scope["state"]["connection"]
        refusal, key, length = await self._check(scope, connection)
        if refusal:
            await _refuse(send, refusal)
            return
        self._gate.prove(connection, key)
        connection.enter("receiving")
        held = Counter({key: length})
        self._bytes += held
        try:
            body = await _body(receive)
            if body is None:
                return
            connection.enter("answering")
            # Flower gets the checked path and the body only: no other spelling, no state of ours.
            scope = {**scope, "query_string": b"", "state": {}}
            await self._app(scope, _replay(body, receive), send)
            connection.enter("waiting")
        finally:
            self._bytes -= held

    async def _check(self, scope: Event, connection: Connection) -> tuple[int, bytes, int]:
        """The status of a refusal (0: none), the device's public key, and the request's length.

        Too many requests give 503 instead of 429, because Flower's clients retry only on 503.
        """
        path = scope["path"]
        spelt = path.isascii() and scope["raw_path"] == path.encode()
        if not spelt or (scope["method"], path) not in self._routes:
            return _no(404)
        key = _decoded(scope, _PUBLIC_KEY_HEADER)
        if key is None:
            return _no(401)
        if key not in self._seen and not self._strangers.take(connection.address):
            return _no(503)
        if not await self._knows(key) or not _signed(scope, key):
            self._tell(connection.address)
            return _no(401)
        if not self._devices.take(key):
            return _no(503)
        # Flower's clients state a request's length, and h11 enforces it for everybody.
        said = _only(scope, b"content-length")
        if said is None or any(name == b"transfer-encoding" for name, _ in scope["headers"]):
            return _no(411)
        length = int(said)
        if length > self._most_bytes:
            return _no(413)
        return (0, key, length) if self._has_room(key, length) else _no(503)

    def _has_room(self, key: bytes, length: int) -> bool:
        """Whether there is memory for a request, in the device's share and in total."""
        return (
            self._bytes[key] + length <= _MOST_OF_A_DEVICE * self._most_bytes
            and self._bytes.total() + length <= _MOST_TOGETHER * self._most_bytes
        )

    def _tell(self, address: str) -> None:
        """Log refused requests; not often, because the lines could fill a disk."""
        self._unknown += 1
        if time.monotonic() - self._told > _TELL_SECONDS:
            logger.warning(
                "refused %d requests without a registered device's signature, the last from %s",
                self._unknown,
                address,
            )
            self._told, self._unknown = time.monotonic(), 0

    async def _knows(self, key: bytes) -> bool:
        """Whether a key is registered, or was seconds ago; Flower itself checks each time."""
        now = time.monotonic()
        if now - self._seen.get(key, -_LOOK_AGAIN_SECONDS) < _LOOK_AGAIN_SECONDS:
            return True
        if await self._is_registered(key):
            self._seen[key] = now
            return True
        self._seen.pop(key, None)
        return False


class OperatorsDoor:
    """Lets requests with the operator's secret through.

    Args:
        app: Flower's app.
        secret: the operator's secret.
        gate: this port's gate; None: there is none, as only this machine can connect.
    """

    def __init__(self, app: App, secret: bytes, gate: Gate | None = None) -> None:
        self._app, self._secret, self._gate = app, secret, gate

    async def __call__(self, scope: Event, receive: Receive, send: Send) -> None:
        """Answer one request, or handle the app's start and stop."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            raise NotImplementedError(scope["type"])
        given = _only(scope, SECRET_HEADER.encode())
        if given is None or not hmac.compare_digest(given, self._secret):
            await _refuse(send, 401)
            return
        if self._gate is None:
            await self._app(scope, receive, send)
            return
        connection: Connection = scope["state"]["connection"]
        self._gate.prove(connection, id(connection))  # no limit on an operator's connections
        connection.enter("answering")
        await self._app({**scope, "state": {}}, receive, send)
        connection.enter("waiting")


def _only(scope: Event, name: bytes) -> bytes | None:
    """A header's value; None: there is none, or more than one."""
    values = [value for key, value in scope["headers"] if key == name]
    return values[0] if len(values) == 1 else None


async def _body(receive: Receive) -> bytes | None:
    """A request's whole body, which Flower would keep anyway; None: it was incomplete."""
    body = bytearray()
    more = True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            return None
        body += event["body"]
        more = event["more_body"]
    return bytes(body)


def _no(status: int) -> tuple[int, bytes, int]:
    return status, b"", 0


def _decoded(scope: Event, name: bytes) -> bytes | None:
    """The bytes of a header in base64; None: there are none."""
    value = _only(scope, name)
    if value is None or len(value) > _LONGEST_HEADER:
        return None
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error:
        return None


def _signed(scope: Event, key: bytes) -> bool:
    """Whether the sender of a request has the private key of this public key."""
    moment, signature = _only(scope, _TIMESTAMP_HEADER), _decoded(scope, _SIGNATURE_HEADER)
    return moment is not None and signature is not None and has_signed(key, moment, signature)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A receive function that returns a received body first, and then further events."""
    events: list[Event] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_event() -> Event:
        return events.pop() if events else await receive()

    return next_event


async def _refuse(send: Send, status: int) -> None:
    """Answer with a bare status; the rest of the request is not read."""
    headers = [(b"content-length", b"0"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
