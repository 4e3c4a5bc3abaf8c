"""The server's doors without a network: keys, signed requests, and an app that remembers them."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Hashable, Iterable
from datetime import timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import (
    generate_key_pairs,
    public_key_to_bytes,
    sign_message,
)

from simulations.deploy.app import devices_routes
from simulations.deploy.doors import DevicesDoor
from simulations.deploy.gate import Connection, Gate, Limits

PULL = "/v1/fleet/pull-messages"
(PRIVATE, _), (OTHERS, _) = PAIRS = generate_key_pairs(), generate_key_pairs()
KEY, OTHER = (public_key_to_bytes(public) for _, public in PAIRS)
SECRET = b"0123456789abcdef"
OWNERS = {KEY: PRIVATE, OTHER: OTHERS}
LIMITS = Limits(connections=8, per_address=8, request_seconds=60, answer_seconds=60)
LARGEST = 1000


class Flower:
    """In the place of Flower's app: remembers what reached it."""

    def __init__(self) -> None:
        self.reached: list[tuple[str, str, bytes]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            event = await receive()
            assert event["type"] == "http.request"
            body, more = body + event["body"], event["more_body"]
        self.reached.append((scope["method"], scope["path"], body))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"from flower"})


class Noting(Gate):
    """Remembers who has proved himself."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self.proved: list[Hashable] = []

    def prove(self, connection: Connection, guest: Hashable) -> None:
        self.proved.append(guest)
        super().prove(connection, guest)


class Devices:
    """A door for devices, without a network."""

    def __init__(self, rate: float = 100) -> None:
        self.flower, self.gate, self.registered = Flower(), Noting(LIMITS), {KEY}
        self.asked: list[bytes] = []

        async def is_registered(key: bytes) -> bool:
            self.asked.append(key)
            return key in self.registered

        self.door = DevicesDoor(
            self.flower, self.gate, devices_routes(), is_registered, most_bytes=LARGEST, rate=rate
        )

    async def status(self, key: bytes, length: int, *, ends: bool = True) -> int:
        """Of the answer to a request with so long a body, which comes at once or never."""
        self.registered.add(key)
        headers = [*signed(key), (b"content-length", str(length).encode())]
        sent: list[Any] = []

        async def receive() -> Any:
            if not ends:
                await asyncio.Event().wait()
            return {"type": "http.request", "body": b"x" * length, "more_body": False}

        async def send(event: Any) -> None:
            sent.append(event)

        await self.door(a_scope(headers=headers), receive, send)
        return int(sent[0]["status"])

    def ask(self, **request: Any) -> tuple[int, bytes]:
        return ask(self.door, **{"headers": named(KEY), **request})


def named(key: bytes) -> list[tuple[bytes, bytes]]:
    """Headers of an ordinary request of a device."""
    return [*signed(key), (b"content-length", b"1")]


def signed(
    key: bytes, by: EllipticCurvePrivateKey | None = None, seconds: float = 0
) -> list[tuple[bytes, bytes]]:
    """Flower's headers for a key, signed by its private half or another's, some time ago."""
    moment = (now() - timedelta(seconds=seconds)).isoformat().encode()
    return [
        (b"flwr-public-key", base64.b64encode(key)),
        (b"flwr-timestamp", moment),
        (b"flwr-signature", base64.b64encode(sign_message(by or OWNERS.get(key, OTHERS), moment))),
    ]


def a_scope(
    kind: str = "http",
    method: str = "POST",
    path: str = PULL,
    raw_path: bytes | None = None,
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> dict[str, Any]:
    return {
        "type": kind, "method": method, "path": path, "query_string": b"", "headers": headers,
        "raw_path": path.encode() if raw_path is None else raw_path,
        "state": {"connection": Connection("10.0.0.1", time.monotonic())},
    }  # fmt: skip


def ask(
    door: Any,
    *,
    method: str = "POST",
    path: str = PULL,
    raw_path: bytes | None = None,
    headers: list[tuple[bytes, bytes]],
    body: Iterable[bytes] = (),
    breaks_off: bool = False,
    kind: str = "http",
) -> tuple[int, bytes]:
    """The status and body of an answer, 0 for none; the request's body comes in pieces."""
    sent: list[Any] = []
    pieces = iter(body)
    scope = a_scope(kind, method, path, raw_path, headers)

    async def receive() -> Any:
        piece = next(pieces, None)
        if piece is None and breaks_off:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

    async def send(event: Any) -> None:
        sent.append(event)

    asyncio.run(door(scope, receive, send))
    if not sent:
        return 0, b""
    return sent[0]["status"], b"".join(event.get("body", b"") for event in sent[1:])
