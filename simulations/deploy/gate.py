"""Limits the connections to a port: how many, from where, for how long.

uvicorn does not limit silent connections, endless handshakes, or requests that arrive a byte at a
time. So the gate accepts connections and passes on to uvicorn only those that it lets in. It tells
strangers from guests, who have proved their identity with a request. If there is no room, strangers
are dropped first, so that a crowd of silent connections cannot keep a guest out.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Literal

from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["Buckets", "Connection", "Gate", "Limits", "protocol"]

# Seconds that a stranger may take for a handshake and a request.
_STRANGER_SECONDS = 10.0
_SWEEP_SECONDS = 1.0
_GOODBYE_SECONDS = 5.0
# A guest needs several connections for large messages, and old ones may not be closed yet.
_MOST_OF_A_GUEST = 16
_MOST_BUCKETS = 10_000
_quiet = logging.getLogger("fedhead.gate")
_quiet.addHandler(logging.NullHandler())
_quiet.propagate = False

Phase = Literal["waiting", "receiving", "answering"]


@dataclass(frozen=True)
class Limits:
    """Bounds of a port.

    Attributes:
        connections: largest number of open connections.
        per_address: the same for one address; IPv6 addresses count by their /64.
        request_seconds: time within which a guest's request must arrive.
        answer_seconds: time within which a guest must be answered; None: no limit.
    """

    connections: int
    per_address: int
    request_seconds: float
    answer_seconds: float | None


@dataclass(eq=False)
class Connection:
    """One accepted connection.

    Attributes:
        address: the address that it comes from.
        guest: the proved identity of its other end; None: a stranger.
        phase: what it is waiting for.
        since: when the phase began, by the monotonic clock.
    """

    address: str
    since: float
    guest: Hashable | None = None
    phase: Phase = "waiting"
    transport: asyncio.Transport | None = None
    handshake: asyncio.Task[None] | None = None

    def enter(self, phase: Phase) -> None:
        """Begin another phase."""
        self.phase, self.since = phase, time.monotonic()

    def drop(self) -> None:
        """Close it at once."""
        if self.transport is not None:
            self.transport.abort()
        elif self.handshake is not None:
            self.handshake.cancel()


class Gate:
    """The open connections of one port."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.connections: set[Connection] = set()  # unordered; `since` gives the order

    async def accept(
        self,
        listener: socket.socket,
        context: ssl.SSLContext,
        make: Callable[[Connection], asyncio.Protocol],
    ) -> None:
        """Let connections in until cancelled.

        Args:
            listener: the listening socket.
            context: the server's TLS context.
            make: returns the protocol for a connection after its handshake.
        """
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        sweeper = loop.create_task(self._sweep())
        try:
            while True:
                try:
                    link, peer = await loop.sock_accept(listener)
                except OSError:  # it was closed before it was accepted, or no descriptor is left
                    await asyncio.sleep(_SWEEP_SECONDS / 10)
                    continue
                connection = self._admit(_network(peer[0]))
                if connection is None:
                    link.close()
                    continue
                connection.handshake = loop.create_task(
                    self._shake_hands(connection, link, context, make)
                )
                await asyncio.sleep(0)  # open connections have their turn before the next one
        finally:
            sweeper.cancel()
            for connection in list(self.connections):
                connection.drop()

    def prove(self, connection: Connection, guest: Hashable) -> None:
        """Record a connection's guest. A guest's connections beyond a few stay strangers'."""
        if connection.guest is None:
            count = sum(other.guest == guest for other in self.connections)
            connection.guest = guest if count < _MOST_OF_A_GUEST else None

    def leave(self, connection: Connection) -> None:
        """Record that a connection is closed."""
        self.connections.discard(connection)

    def _admit(self, address: str) -> Connection | None:
        """A new connection, if there is room or a stranger can be dropped."""
        here = [other for other in self.connections if other.address == address]
        for crowd, most in (
            (here, self._limits.per_address),
            (self.connections, self._limits.connections),
        ):
            if len(crowd) >= most:
                strangers = [c for c in crowd if c.guest is None]
                if not strangers:
                    return None
                oldest = min(strangers, key=lambda c: c.since)
                oldest.drop()
                self.leave(oldest)
        connection = Connection(address, time.monotonic())
        self.connections.add(connection)
        return connection

    async def _shake_hands(
        self,
        connection: Connection,
        link: socket.socket,
        context: ssl.SSLContext,
        make: Callable[[Connection], asyncio.Protocol],
    ) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: make(connection),
                link,
                ssl=context,
                ssl_handshake_timeout=_STRANGER_SECONDS,
                ssl_shutdown_timeout=_GOODBYE_SECONDS,
            )
        except (OSError, asyncio.CancelledError):  # an SSLError is an OSError
            self.leave(connection)

    async def _sweep(self) -> None:
        """Drop connections that take too long, again and again."""
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            now = time.monotonic()
            for connection in list(self.connections):
                if now - connection.since > self._patience(connection):
                    connection.drop()

    def _patience(self, connection: Connection) -> float:
        """Seconds that a phase may take."""
        if connection.phase == "answering":
            seconds = self._limits.answer_seconds
            return float("inf") if seconds is None else seconds
        if connection.guest is None:
            return _STRANGER_SECONDS
        # uvicorn itself closes connections that wait for a further request.
        return self._limits.request_seconds if connection.phase == "receiving" else float("inf")


def protocol(gate: Gate, connection: Connection, **options: Any) -> H11Protocol:
    """Uvicorn's HTTP protocol for a connection; it keeps the connection's phase.

    It is h11 instead of httptools, because h11 limits the length of a request's head.

    Args:
        gate: the connection's gate.
        connection: the connection; requests find it in their scope's state.
        options: options of uvicorn's protocol.
    """
    return _Told(gate, connection, **options)


class _Told(H11Protocol):
    """Tells its connection when data arrives, and the gate when it is closed."""

    def __init__(self, gate: Gate, connection: Connection, **options: Any) -> None:
        super().__init__(**options, app_state={"connection": connection})
        self._gate, self._connection = gate, connection
        # Otherwise strangers could fill a disk with log lines.
        self.logger, self.access_log = _quiet, False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._connection.transport = transport
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._connection.phase == "waiting" and self._connection.guest is not None:
            self._connection.enter("receiving")
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._gate.leave(self._connection)
        super().connection_lost(exc)


class Buckets:
    """Limits each peer's requests per second; some may come at once.

    Args:
        rate: requests per second.
        burst: requests at once.
    """

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._left: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def take(self, peer: Hashable) -> bool:
        """Take one of a peer's requests; False if none is left."""
        now = time.monotonic()
        left, then = self._left.pop(peer, (self._burst, now))
        left = min(self._burst, left + (now - then) * self._rate)
        self._left[peer] = (left - 1 if left >= 1 else left, now)
        if len(self._left) > _MOST_BUCKETS:
            self._left.popitem(last=False)
        return left >= 1


def _network(host: str) -> str:
    """The part of an address that counts: for IPv6 the /64, as one owner has all 2^64 in it."""
    with suppress(ValueError):
        address = ip_address(host.partition("%")[0])
        if address.version == 6:
            mapped = address.ipv4_mapped
            return str(mapped) if mapped else str(int(address) >> 64)
    return host
