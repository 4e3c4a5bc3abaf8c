"""The server's two doors alone: what they let through of what a stranger may send."""

from __future__ import annotations

import asyncio
import base64
import logging
import socket
import ssl
import time
from collections.abc import AsyncIterator, Hashable, Iterable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import Message, Metadata
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import (
    generate_key_pairs,
    public_key_to_bytes,
    sign_message,
)
from flwr.superlink.servicer.fleet import fleet_handlers

from simulations.deploy import gate as gate_module
from simulations.deploy.app import devices_routes, is_told
from simulations.deploy.certificates import write_authority, write_server
from simulations.deploy.doors import DevicesDoor, OperatorsDoor
from simulations.deploy.gate import Buckets, Connection, Gate, Limits, protocol
from simulations.deploy.operator import SECRET_HEADER

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


def test_a_registered_device_reaches_each_of_flowers_routes_for_devices() -> None:
    devices = Devices()
    routes = devices_routes()
    assert ("POST", PULL) in routes
    for method, path in routes:
        assert devices.ask(method=method, path=path, body=[b"ab", b"c"]) == (200, b"from flower")
    assert devices.flower.reached == [(method, path, b"abc") for method, path in routes]


@pytest.mark.parametrize(
    "path",
    [
        "/", "", "/docs", "/openapi.json", "/redoc", "/health", "/v1/control/list-nodes",
        "/v1/runtime/acquire-task", "/v1/fleet", "/v1/fleet/", f"{PULL}/", f"/{PULL}", f"{PULL}//",
        PULL.upper(), "/V1/fleet/pull-messages", "/v1/fleet/../control/list-nodes",
        "/v1/control/../fleet/pull-messages", "/v1/./fleet/pull-messages", f"{PULL}/../../x",
        f"{PULL}?x", f"{PULL}#x", f"{PULL};x", f" {PULL}", f"{PULL} ", f"{PULL}\n", f"{PULL}\0",
        "v1/fleet/pull-messages", f"https://server{PULL}", "/v1/fleet/pull-messages\u200b",
        "/v1/fleet/pull\u2010messages", "*",
    ],
)  # fmt: skip
def test_another_path_is_not_found_even_for_a_registered_device(path: str) -> None:
    devices = Devices()
    assert devices.ask(path=path) == (404, b"")
    assert not devices.flower.reached


@pytest.mark.parametrize(
    "raw", [b"/v1/fleet/pull%2dmessages", b"/v1/fleet%2Fpull-messages", b"//v1/fleet/pull-messages"]
)
def test_another_spelling_of_a_path_is_not_found(raw: bytes) -> None:
    devices = Devices()
    assert devices.ask(raw_path=raw) == (404, b"")
    assert not devices.flower.reached


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "post", "TRACE", "CONNECT"])
def test_another_method_is_not_found(method: str) -> None:
    devices = Devices()
    assert devices.ask(method=method) == (404, b"")
    assert not devices.flower.reached


@pytest.mark.parametrize("kind", ["websocket", "lifespan"])
def test_nothing_but_http_is_spoken_at_the_devices_door(kind: str) -> None:
    devices = Devices()
    with pytest.raises(NotImplementedError):
        devices.ask(kind=kind)
    assert not devices.flower.reached


@pytest.mark.parametrize(
    "headers",
    [
        [],
        signed(OTHER),
        [*signed(KEY), *signed(KEY)],
        [*signed(OTHER), *signed(KEY)],
        [(b"flwr-public-key", KEY)],
        [(b"flwr-public-key", b"")],
        [(b"flwr-public-key", b"A" * 100_000)],
        [(b"flwr-public-key", base64.b64encode(KEY) + b"\xff"), *signed(KEY)[1:]],
        [(SECRET_HEADER.encode(), SECRET)],
    ],
)
def test_who_names_no_registered_key_reaches_nothing(headers: list[tuple[bytes, bytes]]) -> None:
    devices = Devices()
    assert devices.ask(headers=headers, body=[b"x" * 10]) == (401, b"")
    assert not devices.flower.reached


def stolen() -> list[list[tuple[bytes, bytes]]]:
    """What somebody can send who knows a registered public key, and no more."""
    key, moment, signature = signed(KEY)
    other, late = signed(KEY, OTHERS), signed(KEY, seconds=1)[1]
    return [
        [key], [key, moment], [key, signature], other, [key, late, signature],
        [key, moment, *signed(OTHER)[2:]], signed(KEY, seconds=400), signed(KEY, seconds=-60),
        [key, moment, (b"flwr-signature", b"")], [key, moment, (b"flwr-signature", b"\xff")],
        [key, (b"flwr-timestamp", b"now"), signature],
        [key, (b"flwr-timestamp", b"\xff"), signature],
        [key, (b"flwr-timestamp", b"2026-11-28T00:00:00"), signature],
        [key, key, moment, signature], [key, moment, moment, signature],
        [key, moment, signature, signature],
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(len(stolen())))
def test_a_public_key_without_its_private_one_is_refused_and_costs_the_device_nothing(
    number: int,
) -> None:
    headers = stolen()[number]  # signed now, not when tests were collected
    devices = Devices(rate=0.2)  # two at once
    assert devices.ask() == (200, b"from flower")
    for _ in range(20):
        unread = iter([b"x"])
        length = (b"content-length", str(LARGEST).encode())
        assert devices.ask(headers=[*headers, length], body=unread) == (401, b"")
        assert list(unread) == [b"x"]
    assert devices.gate.proved == [KEY]
    assert devices.ask() == (200, b"from flower")


def test_large_bodies_have_little_room_of_one_device_and_of_all() -> None:
    devices = Devices()
    pairs = [generate_key_pairs() for _ in range(5)]
    keys = [public_key_to_bytes(public) for _, public in pairs]
    OWNERS.update(zip(keys, (private for private, _ in pairs), strict=True))

    async def crowd() -> None:
        waiting = [asyncio.create_task(devices.status(KEY, LARGEST, ends=False)) for _ in range(3)]
        await asyncio.sleep(0)
        assert await devices.status(KEY, 1) == 503, "it has its share"
        assert await devices.status(OTHER, 1) == 200, "and others have theirs"
        for key in keys[:4]:
            waiting += [
                asyncio.create_task(devices.status(key, LARGEST, ends=False)) for _ in range(3)
            ]
        waiting += [asyncio.create_task(devices.status(keys[4], LARGEST, ends=False))]
        await asyncio.sleep(0.1)
        assert await devices.status(OTHER, 1) == 503
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        # What is cut off leaves its room.
        assert await devices.status(OTHER, LARGEST) == 200
        assert await devices.status(KEY, LARGEST) == 200

    asyncio.run(crowd())


def test_a_request_that_fails_leaves_its_room() -> None:
    devices = Devices()

    async def fail(*_: object) -> None:
        raise RuntimeError

    devices.door._app = fail
    length = (b"content-length", str(LARGEST).encode())
    for _ in range(5):
        with pytest.raises(RuntimeError):
            devices.ask(headers=[*signed(KEY), length])
    for _ in range(5):
        assert devices.ask(headers=[*signed(KEY), length], breaks_off=True) == (0, b"")
    devices.door._app = devices.flower
    assert devices.ask(headers=[*signed(KEY), length])[0] == 200


def test_a_key_counts_from_when_it_is_registered_and_no_more_soon_after_it_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    devices = Devices()
    assert devices.ask(headers=named(OTHER))[0] == 401
    devices.registered.add(OTHER)
    assert devices.ask(headers=named(OTHER))[0] == 200
    devices.registered.clear()
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 11)
    assert devices.ask(headers=named(OTHER))[0] == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([(b"content-length", str(LARGEST).encode())], 200),
        ([(b"content-length", str(LARGEST + 1).encode())], 413),
        ([(b"content-length", b"9" * 1000)], 413),
        ([], 411),
        ([(b"transfer-encoding", b"chunked")], 411),
        ([(b"content-length", b"1"), (b"transfer-encoding", b"chunked")], 411),
    ],
)
def test_a_body_is_refused_unread_unless_its_length_is_said_and_small(
    headers: list[tuple[bytes, bytes]], status: int
) -> None:
    devices = Devices()
    unread = iter([b"x"])
    assert devices.ask(headers=[*signed(KEY), *headers], body=unread)[0] == status
    assert list(unread) == ([] if status == 200 else [b"x"])


def test_half_a_body_does_not_reach_flower() -> None:
    devices = Devices()
    assert devices.ask(body=[b"half"], breaks_off=True) == (0, b"")
    assert not devices.flower.reached


def test_a_device_that_asks_too_often_is_told_to_try_again_and_others_are_not() -> None:
    devices = Devices(rate=1)
    devices.registered.add(OTHER)
    statuses = [devices.ask()[0] for _ in range(12)]
    assert statuses[:10] == [200] * 10
    assert 503 in statuses[10:], "Flower's clients try again after 503, and not after 429"
    assert devices.ask(headers=named(OTHER))[0] == 200


def test_a_strangers_many_guesses_are_not_looked_up_and_keep_no_device_out() -> None:
    devices = Devices()
    assert devices.ask()[0] == 200
    guesses = [devices.ask(headers=named(b"%d" % i))[0] for i in range(300)]
    assert set(guesses) == {401, 503}
    assert len(devices.asked) < 200
    assert devices.ask()[0] == 200, "from the same address"


def test_a_bucket_fills_again_and_their_number_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    buckets = Buckets(rate=2, burst=3)
    assert [buckets.take("a") for _ in range(4)] == [True, True, True, False]
    now = 1.0
    assert [buckets.take("a") for _ in range(3)] == [True, True, False]
    monkeypatch.setattr(gate_module, "_MOST_BUCKETS", 5)
    assert all(buckets.take(i) for i in range(100))
    assert len(buckets._left) == 5


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(SECRET_HEADER.encode(), b"")],
        [(SECRET_HEADER.encode(), SECRET[:-1])],
        [(SECRET_HEADER.encode(), SECRET + b"0")],
        [(SECRET_HEADER.encode(), SECRET.upper())],
        [(SECRET_HEADER.encode(), b"\xff" * 16)],
        [(SECRET_HEADER.encode(), SECRET)] * 2,
        [(b"authorization", b"Bearer " + SECRET)],
        signed(KEY),
    ],
)
def test_the_operators_door_opens_for_the_secret_alone(headers: list[tuple[bytes, bytes]]) -> None:
    flower = Flower()
    door = OperatorsDoor(flower, SECRET, Gate(LIMITS))
    for path in ("/v1/control/list-nodes", "/docs", PULL):
        assert ask(door, path=path, headers=headers) == (401, b"")
    assert not flower.reached
    right = [(SECRET_HEADER.encode(), SECRET)]
    assert ask(door, path="/docs", method="GET", headers=right) == (200, b"from flower")


# With TLS and sockets.


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


def test_flowers_log_does_not_say_which_device_answers(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its logger does not hand its lines on.
    logger = logging.getLogger("flwr")
    monkeypatch.setattr(logger, "propagate", True)
    reply = PushMessagesRequest(messages_list=[Message(metadata=Metadata(src_node_id=4711))])

    def told() -> bool:
        caplog.clear()
        with suppress(Exception):  # it is no whole message
            fleet_handlers.push_messages(reply, state=None)  # type: ignore[arg-type]
        return "4711" in caplog.text

    with caplog.at_level("INFO", "flwr"):
        assert told(), "Flower's line has other words now"
        logger.addFilter(is_told)
        try:
            assert not told()
            logger.info("[Fleet.ActivateNode] Activated node_id=%s", 4711)
            assert "4711" in caplog.text
        finally:
            logger.removeFilter(is_told)
