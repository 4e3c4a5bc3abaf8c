"""The gateway's service: one process, which phones call and which keeps all that they send.

    python -P -m client.gateway.service SERVER_FOLDER SOCKET [--port N]

SERVER_FOLDER is the server's folder of a deployment. SOCKET is where the bridge hands over the
server's messages. The service ends cleanly on SIGTERM; a kill loses nothing that was accepted.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import grpc.aio

from client.gateway.backbones import Blobs, offer_backbones
from client.gateway.calls import Calls
from client.gateway.door import Door
from client.gateway.figures import Figures
from client.gateway.listening import Listening
from client.gateway.place import Place, Settings, read_settings
from client.gateway.presence import Presence
from client.gateway.rounds import Rounds
from client.gateway.runs import Runs
from client.gateway.server import Answers, order_of
from client.gateway.uploads import Uploads
from common.delivery.identity import Identity
from common.delivery.tokens import token_state
from common.errors import DeliveryError, FedheadError
from common.files import remove_temporary
from common.listening import obstacle
from common.log import start_log
from common.open_files import allow_files
from common.phones.wire import SERVER_OPTIONS, handlers

__all__ = ["Gateway"]

logger = logging.getLogger("fedhead.gateway")

T = TypeVar("T")

_SWEEP_SECONDS, _DAY = 0.25, 86_400.0
_KEEP_SECONDS = 5.0
_KEEP_SHARE = 0.05  # largest share of the time that goes into keeping figures
_THREADS = 2  # for checks and sums
_GRACE_SECONDS = 1.0
# A phone that says nothing for so long must connect again: idle connections take memory.
_IDLE_MS = 60_000
_HANDSHAKE_MS = 20_000  # a phone's takes two or three journeys of a packet
_FILES = 256  # for all but connections
_CONNECTIONS = 16_384  # beyond them phones wait; each takes up to 80 KiB


class Gateway:
    """A running service.

    Args:
        place: its files.
        settings: its limits and its pace.
        connections: largest number of phones' connections; more are refused.
    """

    def __init__(self, place: Place, settings: Settings, connections: int = _CONNECTIONS) -> None:
        self._place, self._settings, self._connections = place, settings, connections
        place.state.mkdir(parents=True, exist_ok=True)
        place.state.chmod(0o700)
        for folder in (place.state, place.runs):
            remove_temporary(folder)
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="gateway")
        self.presence = Presence(settings)
        self.figures = Figures(place.fleet, self.presence)
        self.figures.restore()
        self._runs, self._blobs = Runs(place.runs), Blobs()
        self._uploads = Uploads(place.uploads)
        self.rounds = Rounds(
            place.rounds, self.figures, self.presence, self._uploads, self._blobs, self._heavy,
            self._is_valid,
        )  # fmt: skip
        self._tasks: list[asyncio.Task[None]] = []

    async def _heavy(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    async def start(self, socket: Path, port: int) -> int:
        """Serve phones and the bridge.

        Args:
            socket: for the bridge.
            port: for phones; 0: any free one.

        Returns:
            The port.

        Raises:
            FedheadError: the address cannot be used, or the server's files are no certificate and
                its key.
            OSError: a file cannot be read, or the socket cannot be made.
        """
        identity = self._identity()
        most = self._settings.max_phone_calls
        door = Door(self._place, self.figures.count)
        self._server = grpc.aio.server(
            interceptors=[door],
            options=[
                *SERVER_OPTIONS,
                ("grpc.max_connection_idle_ms", _IDLE_MS),
                ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
                ("grpc.max_allowed_incoming_connections", self._connections),
                # Calls that wait for their turn. By default gRPC cancels those beyond a thousand.
                ("grpc.server.max_pending_requests", most),
                ("grpc.server.max_pending_requests_hard_limit", 2 * most),
            ],
            maximum_concurrent_rpcs=most,
        )
        calls = Calls(
            self._place, self._runs, self.presence, self.rounds, self._blobs, self.figures,
            door.caller,
        )  # fmt: skip
        self._server.add_generic_rpc_handlers(tuple(handlers(calls)))
        host = self._settings.host
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            port = self._server.add_secure_port(address, identity.credentials())
        except RuntimeError as exc:
            raise DeliveryError(f"cannot listen on {address}: {obstacle(address)}") from exc
        self._restore()
        await self._server.start()
        answers = Answers(
            self._place, self._runs, self.presence, self.rounds, self.figures.count
        )  # fmt: skip
        self._bridge = Listening(answers.answer)
        await self._bridge.start(socket)
        self._tasks = [asyncio.create_task(self._sweep()), asyncio.create_task(self._keep())]
        return port

    def _restore(self) -> None:
        self._runs.forget_old(self._place.clients)
        for folder in sorted(self._place.backbones.glob("*")):
            offer_backbones(self._blobs, folder)
        self.rounds.restore(partial(order_of, self._place, self._runs))

    def _identity(self) -> Identity:
        server = self._place.server
        return Identity(server / "server.crt", server / "server.key", server / "ca.crt")

    async def _sweep(self) -> None:
        forgets = time.monotonic() + _DAY
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            try:
                await self.rounds.sweep()
                if time.monotonic() > forgets:
                    forgets = time.monotonic() + _DAY
                    await asyncio.to_thread(self._runs.forget_old, self._place.clients)
            except Exception:
                logger.exception("a round cannot be looked after")

    async def _keep(self) -> None:
        pause = _KEEP_SECONDS
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.figures.due.wait(), pause)
            self.figures.due.clear()
            began = time.monotonic()
            await self.keep()
            took = (time.monotonic() - began) / _KEEP_SHARE
            pause = max(_KEEP_SECONDS, took)
            await asyncio.sleep(took)  # of a large fleet they take time, and rounds may be short

    async def keep(self) -> None:
        """Write the figures now."""
        try:
            content = self.figures.pack(coarsely=self._hides())
            await asyncio.to_thread(self.figures.keep, content)
        except OSError as exc:
            logger.warning("the figures cannot be kept: %s", exc)

    def _hides(self) -> bool:
        """Whether a private run goes on."""
        is_open = any(round_.order.private for round_ in self.rounds.open)
        return is_open or any(run.request.private for run in self._runs.active())

    def _is_valid(self, client: int) -> bool:
        """Whether a phone's token is not revoked. What cannot be read now shuts nobody out."""
        seen = self.presence.get(client)
        try:
            return seen is None or token_state(self._place.delivery, seen.phone.name) != "revoked"
        except OSError:
            return True

    async def stop(self) -> None:
        """End the service; calls in progress get a moment."""
        for task in self._tasks:
            task.cancel()
        await self._bridge.stop()
        self.presence.wake()
        await self._server.stop(_GRACE_SECONDS)
        await self.keep()
        self._pool.shutdown()


async def _serve(server: Path, socket: Path, port: int | None) -> None:
    files = allow_files(_CONNECTIONS + _FILES)
    place = Place(server)
    settings = read_settings(place)
    # Connections of strangers must leave files to write updates to.
    gateway = Gateway(place, settings, max(1, min(_CONNECTIONS, files - _FILES)))
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await gateway.start(socket, settings.gateway_port if port is None else port)
    await ended.wait()
    await gateway.stop()


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(prog="python -m client.gateway.service")
    parser.add_argument("server", type=Path, metavar="SERVER_FOLDER")
    parser.add_argument("socket", type=Path, metavar="SOCKET")
    parser.add_argument("--port", type=int)
    arguments = parser.parse_args()
    start_log()
    try:
        with suppress(KeyboardInterrupt):
            asyncio.run(_serve(arguments.server, arguments.socket, arguments.port))
    except (FedheadError, OSError) as exc:
        raise SystemExit(f"error: {exc}") from exc


if __name__ == "__main__":
    main()
