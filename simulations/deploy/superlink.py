"""Flower's SuperLink with two ports in one process: one for devices, one for operators.

Flower's own SuperLink has one port for both and does not authenticate operators. Anybody who
reaches it can register keys, and start runs of apps that the server and all devices would execute.
So its ASGI app is served here twice, by uvicorn as in Flower: devices reach only their routes, and
operators reach everything, on loopback and with a secret. It is started as a module with a server's
folder and the arguments of flower-superlink.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import ssl
import sys
import tempfile
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn

from common.errors import FedheadError, RunError
from common.listening import listener
from simulations.deploy.app import devices_routes, flower_app, key_lookup, started_commands
from simulations.deploy.doors import DevicesDoor, OperatorsDoor
from simulations.deploy.gate import Gate, Limits, protocol
from simulations.deploy.operator import control, read_secret, register_folder
from simulations.deploy.presented import Presented, keep_presented
from simulations.deploy.settings import (
    OPERATORS_HOST,
    ServerSettings,
    endpoint,
    operator_secret,
    read_server,
)
from simulations.deploy.standin import INSTALLED_SERVERAPP, install, operator_environment
from simulations.deploy.trust import signing_state

if TYPE_CHECKING:
    from fastapi import FastAPI

_BACKLOG = 1024
# Longer than Flower's clients keep a connection, so that none is closed just when it is used again.
_KEEP_ALIVE_SECONDS = 15
_ANSWER_SECONDS = 900.0
_MOST_OPERATORS = 256
_SPARE_DESCRIPTORS = 256
_GOODBYE_SECONDS = 3


def main(server: Path) -> int:
    """Serve until a signal arrives.

    Raises:
        FedheadError: a file or port cannot be used.
    """
    settings = read_server(server)
    secret = read_secret(server)
    os.umask(0o077)  # only the owner can read the database and other files of Flower's processes
    _raise_descriptors(settings.max_connections + _MOST_OPERATORS + _SPARE_DESCRIPTORS)
    devices = _listen(settings.host, settings.port, "port")
    operators = _listen(OPERATORS_HOST, settings.operator_port, "operator-port")
    with tempfile.TemporaryDirectory(prefix="fedhead-server-", ignore_cleanup_errors=True) as own:
        ours = {"flower-superexec", INSTALLED_SERVERAPP}
        refused = started_commands() - ours
        os.environ["PATH"] = install(Path(own), os.environ["PATH"], ours, refused)
        os.environ.update(operator_environment(server))
        app, config = flower_app()

        async def serve() -> None:
            inner = _operators_door(app, config, secret, operators)
            await _serve(server, settings, inner, _devices_door(app, config, settings, devices))

        asyncio.run(serve())
    return 0


def _operators_door(app: FastAPI, config: Any, secret: str, at: socket.socket) -> _Door:
    gate = Gate(Limits(_MOST_OPERATORS, _MOST_OPERATORS, 60, None))
    return _Door(config, OperatorsDoor(app, secret.encode(), gate), gate, at, "on")


def _devices_door(app: FastAPI, config: Any, settings: ServerSettings, at: socket.socket) -> _Door:
    gate = Gate(
        Limits(
            settings.max_connections,
            settings.max_connections_per_address,
            settings.max_request_seconds,
            _ANSWER_SECONDS,
        )
    )
    door = DevicesDoor(
        app,
        gate,
        devices_routes(),
        key_lookup(app),
        most_bytes=settings.max_request_megabytes << 20,
        rate=settings.max_requests_per_second,
    )
    return _Door(config, door, gate, at, "off")


async def _serve(
    server: Path, settings: ServerSettings, operators_door: _Door, devices_door: _Door
) -> None:
    """Open the operators' port, register the devices' keys through it, then open their port."""

    def end(*_: object) -> None:
        operators_door.should_exit = devices_door.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    # Problems with the certificate are reported before a port opens.
    presented = Presented(server, devices_door.context, operators_door.context)
    serving = [loop.create_task(operators_door.serve())]
    keeping = loop.create_task(keep_presented(server, presented, _say))
    try:
        await operators_door.opened.wait()
        if not operators_door.should_exit:
            count = await asyncio.to_thread(_let_in, server)
            serving.append(loop.create_task(devices_door.serve()))
            await devices_door.opened.wait()
            _tell(server, settings, count)
    finally:
        if len(serving) == 1:
            end()
        try:
            await asyncio.gather(*serving)
        finally:
            keeping.cancel()
    if not operators_door.started:
        raise RunError("Flower's SuperLink did not start, for the reason above")


def _let_in(server: Path) -> int:
    """Register exactly the keys in the server's folder; return their number."""
    with control(server) as api:
        return len(register_folder(api, server, _say))


def _tell(server: Path, settings: ServerSettings, count: int) -> None:
    """Say which ports are open, and for whom."""
    _say(f"devices: {endpoint(settings.host, settings.port)} over TLS, {count} registered")
    operators = endpoint(OPERATORS_HOST, settings.operator_port)
    _say(f"operators: {operators}, from this machine and with {operator_secret(server)}")
    _say(str(signing_state(server)))
    _say(f"serving at port {settings.port}; end with Ctrl-C")


class _Door(uvicorn.Server):
    """uvicorn's server for the connections that a gate lets in.

    Args:
        config: Flower's configuration.
        app: the ASGI app.
        gate: accepts connections.
        listener: the listening socket.
        lifespan: "on" for the port that starts and stops the app.

    Attributes:
        context: the TLS context.
        opened: set once it is open or has failed to open.

    Raises:
        RunError: the certificate or its key cannot be used.
    """

    def __init__(
        self, config: Any, app: Any, gate: Gate, listener: socket.socket, lifespan: Any
    ) -> None:
        from flwr.supercore.http_logging import get_uvicorn_log_config
        from flwr.supercore.logger import console_handler

        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                lifespan=lifespan,
                log_config=get_uvicorn_log_config(console_handler.level),
                ssl_certfile=config.ssl_certfile,
                ssl_keyfile=config.ssl_keyfile,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=_GOODBYE_SECONDS,
                proxy_headers=False,
                server_header=False,
            )
        )
        try:
            self.config.load()
        except OSError as exc:  # an SSLError is one
            raise RunError(f"{config.ssl_certfile} cannot be used: {exc}") from exc
        if self.config.ssl is None:
            raise RunError("no certificate")
        self.context: ssl.SSLContext = self.config.ssl
        self._gate, self._listener = gate, listener
        self._accepting: asyncio.Task[None] | None = None
        self.opened = asyncio.Event()

    def capture_signals(self) -> Any:
        """Do not handle signals here: they are for both ports."""
        return nullcontext()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open."""
        await super().startup(sockets=[])
        if self.started:
            make = partial(protocol, self._gate, config=self.config, server_state=self.server_state)
            self._accepting = asyncio.create_task(
                self._gate.accept(self._listener, self.context, make)
            )
        self.opened.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close."""
        if self._accepting is not None:
            self._accepting.cancel()
            with suppress(asyncio.CancelledError):
                await self._accepting
        self._listener.close()
        await super().shutdown(sockets=[])


def _listen(host: str, port: int, key: str) -> socket.socket:
    try:
        return listener(host, port, backlog=_BACKLOG)
    except OSError as exc:
        where = f"{endpoint(host, port)} ({key} in server.toml)"
        raise RunError(f"cannot listen on {where}: {exc.strerror}") from exc


def _raise_descriptors(wanted: int) -> None:
    """Allow as many open files as the connections need.

    Raises:
        RunError: the system does not allow it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise RunError(
            f"max-connections needs {wanted} open files, but the system allows {hard} "
            "(ulimit -Hn): lower it in server.toml"
        )
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    folder = Path(sys.argv.pop(1))
    try:
        sys.exit(main(folder))
    except FedheadError as error:
        sys.exit(f"fedhead: {error}")
