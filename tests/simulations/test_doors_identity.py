"""Who is let in: registered devices by their signatures, the operator by a secret."""

from __future__ import annotations

import base64
import logging
import time
from contextlib import suppress

import pytest
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import Message, Metadata
from flwr.superlink.servicer.fleet import fleet_handlers

from simulations.deploy.app import devices_routes, is_told
from simulations.deploy.doors import OperatorsDoor
from simulations.deploy.gate import Gate
from simulations.deploy.operator import SECRET_HEADER
from tests.simulations.doorways import (
    KEY,
    LARGEST,
    LIMITS,
    OTHER,
    OTHERS,
    PULL,
    SECRET,
    Devices,
    Flower,
    ask,
    named,
    signed,
)


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
