"""How much and how often: sizes of bodies, room of one device and of all, too many requests."""

from __future__ import annotations

import asyncio
import time

import pytest
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes

from simulations.deploy import gate as gate_module
from simulations.deploy.gate import Buckets
from tests.simulations.doorways import KEY, LARGEST, OTHER, OWNERS, Devices, named, signed


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
