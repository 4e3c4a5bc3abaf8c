"""Who is connected to a port: how many, from where, for how long.

uvicorn has no bound on connections that say nothing, on handshakes that never end or on requests
that arrive a byte at a time. So the gate accepts connections itself and hands uvicorn those that
it lets in. It knows strangers from guests who have proved themselves with a request; where there
is no room, strangers go first, so that nobody is kept out by a crowd that says nothing.
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

# How long a stranger may take for a handshake and a request.
_STRANGER_SECONDS = 10.0
_SWEEP_SECONDS = 1.0
_GOODBYE_SECONDS = 5.0
# Several connections for messages that are large, and those of before that are not closed yet.
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
        connections: open ones.
        per_address: from one address; IPv6 addresses count by their /64.
        request_seconds: within which a guest's request has arrived.
        answer_seconds: within which a guest has been answered; None: as long as it takes.
    """

    connections: int
    per_address: int
    request_seconds: float
    answer_seconds: float | None


@dataclass(eq=False)
class Connection:
    """One connection, from the moment it is accepted.

    Attributes:
        address: where it comes from.
        guest: who has proved to be at its other end; None: a stranger.
        phase: what is waited for.
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
        self.connections: set[Connection] = set()  # in no order: `since` says it

    async def accept(
        self,
        listener: socket.socket,
        context: ssl.SSLContext,
        make: Callable[[Connection], asyncio.Protocol],
    ) -> None:
        """Let connections in until cancelled.

        Args:
            listener: bound and listening.
            context: the server's side of TLS.
            make: gives the protocol that a connection is handed to after its handshake.
        """
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        sweeper = loop.create_task(self._sweep())
        try:
            while True:
                try:
                    link, peer = await loop.sock_accept(listener)
                except OSError:  # it was gone before it was accepted, or no descriptor is left
                    await asyncio.sleep(_SWEEP_SECONDS / 10)
                    continue
                connection = self._admit(_network(peer[0]))
                if connection is None:
                    link.close()
                    continue
                connection.handshake = loop.create_task(
                    self._shake_hands(connection, link, context, make)
                )
                await asyncio.sleep(0)  # those that are in have their turn before the next
        finally:
            sweeper.cancel()
            for connection in list(self.connections):
                connection.drop()

    def prove(self, connection: Connection, guest: Hashable) -> None:
        """Note who is at the other end; one guest's connections beyond a few stay a stranger's."""
        if connection.guest is None:
            count = sum(other.guest == guest for other in self.connections)
            connection.guest = guest if count < _MOST_OF_A_GUEST else None

    def leave(self, connection: Connection) -> None:
        """Note that it is closed."""
        self.connections.discard(connection)

    def _admit(self, address: str) -> Connection | None:
        """A new connection, where there is room or a stranger who makes room."""
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
        """Drop, again and again, those that take too long."""
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
        # uvicorn closes what waits for a further request.
        return self._limits.request_seconds if connection.phase == "receiving" else float("inf")


def protocol(gate: Gate, connection: Connection, **options: Any) -> H11Protocol:
    """Uvicorn's HTTP for a connection, whose phases it tells.

    h11 rather than httptools: it bounds the length of a request's head.

    Args:
        gate: the connection's.
        connection: a request finds it in its scope's state.
        options: of uvicorn's protocol.
    """
    return _Told(gate, connection, **options)


class _Told(H11Protocol):
    """Tells its connection when something comes, and the gate when it is closed."""

    def __init__(self, gate: Gate, connection: Connection, **options: Any) -> None:
        super().__init__(**options, app_state={"connection": connection})
        self._gate, self._connection = gate, connection
        # Strangers could fill a disk with the lines of what they send.
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
    """How many requests a peer has left: so many a second, some of them at once.

    Args:
        rate: a second.
        burst: at once.
    """

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._left: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def take(self, peer: Hashable) -> bool:
        """Whether a peer has one left; it is taken."""
        now = time.monotonic()
        left, then = self._left.pop(peer, (self._burst, now))
        left = min(self._burst, left + (now - then) * self._rate)
        self._left[peer] = (left - 1 if left >= 1 else left, now)
        if len(self._left) > _MOST_BUCKETS:
            self._left.popitem(last=False)
        return left >= 1


def _network(host: str) -> str:
    """What counts as one address: who has one IPv6 address has 2^64."""
    with suppress(ValueError):
        address = ip_address(host.partition("%")[0])
        if address.version == 6:
            mapped = address.ipv4_mapped
            return str(mapped) if mapped else str(int(address) >> 64)
    return host
