"""The devices' door with TLS on a real port: strangers, slow ones, and what is no request."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import uvicorn

from simulations.deploy import gate as gate_module
from simulations.deploy.certificates import write_authority, write_server
from simulations.deploy.gate import Gate, Limits, protocol
from tests.simulations.doorways import KEY, LIMITS, OTHER, PULL, Devices, signed


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    pair = folder / "ca.key", folder / "ca.crt"
    write_authority(*pair)
    write_server(pair, folder / "server.key", folder / "server.crt", ["localhost"], 1)
    return folder


class Port:
    """The devices' door on a real port of loopback."""

    def __init__(self, folder: Path, devices: Devices, limits: Limits) -> None:
        self.gate, self.devices = Gate(limits), devices
        devices.door._gate = self.gate
        self._config = uvicorn.Config(
            devices.door, http="h11", ws="none", lifespan="off", log_config=None,
            ssl_certfile=folder / "server.crt", ssl_keyfile=folder / "server.key",
        )  # fmt: skip
        self._config.load()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.number = self._listener.getsockname()[1]
        self.client = ssl.create_default_context(cafile=folder / "ca.crt")

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        make = partial(
            protocol, self.gate, config=self._config, server_state=uvicorn.server.ServerState()
        )
        assert self._config.ssl is not None
        accepting = asyncio.create_task(self.gate.accept(self._listener, self._config.ssl, make))
        try:
            yield
        finally:
            accepting.cancel()
            with suppress(asyncio.CancelledError):
                await accepting
            self._listener.close()
            await asyncio.sleep(0.1)

    async def raw(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.number)

    async def tls(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(
            "127.0.0.1", self.number, ssl=self.client, server_hostname="localhost"
        )


def request(key: bytes = KEY, body: bytes = b"x", length: int | None = None) -> bytes:
    lines = b"".join(name + b": " + value + b"\r\n" for name, value in signed(key))
    count = len(body) if length is None else length
    head = f"POST {PULL} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {count}\r\n"
    return head.encode() + lines + b"\r\n" + body


async def is_closed(reader: asyncio.StreamReader, seconds: float = 5) -> bool:
    """Whether the other side ends a connection within some seconds."""
    try:
        async with asyncio.timeout(seconds):
            while await reader.read(1000):
                pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


async def status(port: Port, sent: bytes) -> int:
    reader, writer = await port.tls()
    writer.write(sent)
    line = await reader.readline()
    writer.close()
    return int(line.split()[1])


@pytest.mark.parametrize("total", [True, False], ids=["in all", "of an address"])
def test_strangers_make_room_for_others_and_devices_do_not(authority: Path, total: bool) -> None:
    most = Limits(6 if total else 100, 100 if total else 6, 60, 60)
    port = Port(authority, Devices(), most)

    async def crowd() -> None:
        async with port.open():
            reader, writer = await port.tls()
            writer.write(request())
            assert b"200" in await reader.readline()
            strangers = [await port.raw() for _ in range(3)] + [await port.tls() for _ in range(9)]
            assert len(port.gate.connections) <= 6
            assert await is_closed(strangers[0][0]), "the oldest"
            assert await status(port, request()) == 200
            # What let the device in keeps its connection.
            writer.write(request())
            await reader.readuntil(b"200 OK")
            for _, other in [*strangers, (reader, writer)]:
                other.close()

    asyncio.run(crowd())


def test_who_takes_too_long_is_cut_off_and_a_device_has_more_time(
    authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_module, "_STRANGER_SECONDS", 1.0)
    monkeypatch.setattr(gate_module, "_SWEEP_SECONDS", 0.1)
    port = Port(authority, Devices(), Limits(100, 100, 4, 60))

    async def slow() -> None:
        async with port.open():
            begun = time.monotonic()
            silent, mute, head, stranger = [
                await connect() for connect in (port.raw, port.tls, port.tls, port.tls)
            ]
            head[1].write(request()[:30])
            stranger[1].write(request(OTHER, b"x", length=10))
            device = await port.tls()
            device[1].write(request(KEY, b"x", length=10))
            for reader, _ in (silent, mute, head, stranger):
                assert await is_closed(reader)
            assert not device[0].at_eof()
            assert await is_closed(device[0], 20)
            assert time.monotonic() - begun >= 4
            for _, writer in (silent, mute, head, stranger, device):
                writer.close()

    asyncio.run(slow())
    assert not port.devices.flower.reached


@pytest.mark.parametrize(
    "sent",
    [
        b"junk\r\n\r\n",
        b"POST /v1/fleet/pull-messages HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 200_000,
        request().replace(b"content-length: 1", b"content-length: 1\r\ncontent-length: 2"),
        request().replace(b"content-length: 1", b"content-length: -1"),
        request().replace(b"content-length: 1", b"content-length: 1e9"),
        request().replace(b"content-length: 1", b"transfer-encoding: chunked, chunked"),
    ],
)  # fmt: skip
def test_what_is_no_request_is_answered_400_and_closed(authority: Path, sent: bytes) -> None:
    port = Port(authority, Devices(), LIMITS)

    async def hostile() -> None:
        async with port.open():
            reader, writer = await port.tls()
            writer.write(sent)
            assert (await reader.readline()).split()[1:2] == [b"400"]
            assert await is_closed(reader)
            writer.close()

    asyncio.run(hostile())
    assert not port.devices.flower.reached


def test_chunks_without_end_are_not_waited_for(authority: Path) -> None:
    port = Port(authority, Devices(), LIMITS)

    async def pour() -> None:
        async with port.open():
            reader, writer = await port.tls()
            writer.write(request().replace(b"content-length: 1", b"transfer-encoding: chunked"))
            with suppress(OSError):
                for _ in range(1000):
                    writer.write(b"1000\r\n" + b"x" * 4096 + b"\r\n")
                    await writer.drain()
            assert await is_closed(reader)
            writer.close()

    asyncio.run(pour())
    assert not port.devices.flower.reached


def test_a_request_hidden_behind_anothers_end_is_one_of_its_own(authority: Path) -> None:
    port = Port(authority, Devices(), LIMITS)

    async def smuggle() -> None:
        async with port.open():
            reader, writer = await port.tls()
            hidden = b"POST /v1/control/list-nodes HTTP/1.1\r\nhost: x\r\n\r\n"
            writer.write(request(body=b"x" + hidden, length=1))
            answers = await asyncio.wait_for(reader.read(-1), 10)
            assert b" 200 " in answers
            assert b" 404 " in answers
            writer.close()

    asyncio.run(smuggle())
    assert port.devices.flower.reached == [("POST", PULL, b"x")]
