"""The C++ phone brings finished models from a real gateway, whole, and says what to load."""

from __future__ import annotations

import fcntl
import random
import shutil
import signal
import subprocess
import time

import grpc
import pytest

from tests.client.native_models import (
    LATER,
    NAME,
    PART,
    command_of,
    current,
    kept,
    updated,
)
from tests.client.native_phones import NativePhone, until

# A build takes minutes on a busy machine.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def phone(shop, phone_program) -> NativePhone:
    return shop.phone(phone_program("executorch"))


@pytest.mark.parametrize("runtime", ["executorch", "lite", "none"])
def test_a_model_and_the_one_before_it_are_kept(runtime, shop, phone_program, monkeypatch):
    phone = shop.phone(phone_program(runtime))
    parts = shop.heard(phone, monkeypatch, "fetch")
    for seed, card_bytes in enumerate((0, 100_000, 0, 5 << 20)):
        version = shop.publish(seed, card_bytes=card_bytes)
        said = updated(phone)
        assert (said.status, said.version, said.news) == (0, version, "new")
        assert said.path == phone.state / "models" / NAME / str(version) / NAME
        assert current(phone) == shop.whole(version)
        assert parts
        parts.clear()
        said = updated(phone)
        assert (said.status, said.version, said.news) == (0, version, "unchanged")
        assert not parts
        assert current(phone) == shop.whole(version)
        assert kept(phone) == [str(v) for v in (version - 1, version) if v]
    if runtime == "none":
        assert subprocess.run([phone.program, phone.path]).returncode == 1


def test_where_nothing_is_published_what_is_there_stays(shop, phone):
    shop.publish(1)
    assert updated(phone).status == 0
    shutil.rmtree(shop.file(1).parents[1])
    said = updated(phone)
    assert said.status == 1
    assert f"nothing is published as {NAME}" in said.error
    assert current(phone) == shop.whole(1)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        *((name, "expected a letter or digit, then at most 99 letters, digits")
          for name in ("", ".", "..", "../x", "a/b", ".sums", "-x", "a" * 101, "a\n", "\xe4")),
        *((name, f'each version has a file of this name beside the model\'s, found "{name}"')
          for name in ("card.json", "artifact.json", "signed")),
    ],
)  # fmt: skip
def test_a_name_that_is_none_makes_no_folder(name, why, shop, phone):
    said = updated(phone, name)
    assert said.status == 1
    assert f"cannot name a model: {why}" in said.error
    assert not phone.state.exists()


def test_names_may_look_like_those_of_its_own_files(shop, phone, monkeypatch):
    """What is asked for comes as far as the gateway, and its answer is understood."""
    asked = shop.heard(phone, monkeypatch, "latest")
    for name in ("lock", "parts", "1", "current", "card", f"{NAME}.tmp", "a" * 100):
        assert "nothing is published as" in updated(phone, name).error
        assert asked[-1].name == name


def test_what_a_later_try_may_mend_ends_with_75(shop, phone, monkeypatch):
    shop.publish(1)
    codes = {
        grpc.StatusCode.RESOURCE_EXHAUSTED: LATER, grpc.StatusCode.UNAVAILABLE: LATER,
        grpc.StatusCode.CANCELLED: LATER, grpc.StatusCode.DEADLINE_EXCEEDED: LATER,
        grpc.StatusCode.UNAUTHENTICATED: 1, grpc.StatusCode.DATA_LOSS: 1,
        grpc.StatusCode.INVALID_ARGUMENT: 1, grpc.StatusCode.UNIMPLEMENTED: 1,
    }  # fmt: skip
    code = iter(codes)
    shop.heard(phone, monkeypatch, "latest", lambda: next(code, None))
    for expected in codes.values():
        said = updated(phone)
        assert (said.status, "try again later" in said.error) == (expected, expected == LATER)
    assert updated(phone).status == 0
    shop.stop()
    said = updated(phone)
    assert said.status == LATER
    assert "connect" in said.error
    assert current(phone) == shop.whole(1)


def test_a_broken_download_goes_on_where_it_ended(shop, phone, monkeypatch):
    shop.publish(1, size=5 * PART + 7, card_bytes=3 * PART)
    served = iter(range(100))
    fetched = shop.heard(
        phone,
        monkeypatch,
        "fetch",
        lambda: grpc.StatusCode.UNAVAILABLE if next(served) in (2, 7) else None,
    )
    assert [updated(phone).status for _ in range(2)] == [LATER, LATER]
    assert current(phone) is None
    assert updated(phone).news == "new"
    assert current(phone) == shop.whole(1)
    assert len(fetched) == 4 + 6 + 2  # each part once, but for the two that were refused
    offsets = [request.offset // PART for request in fetched]
    assert offsets == [0, 1, 2, 2, 3, 0, 1, 2, 2, 3, 4, 5]


def test_a_version_that_is_not_offered_any_more_is_asked_for_anew(shop, phone, monkeypatch):
    """A new version takes away the large card of the one before."""
    shop.publish(1, card_bytes=3 * PART)
    fetched = shop.heard(phone, monkeypatch, "fetch", lambda: grpc.StatusCode.NOT_FOUND)
    assert updated(phone).status == LATER
    assert len(fetched) == 1


def test_a_file_that_is_damaged_on_the_server_is_not_taken(shop, phone):
    shop.publish(1)
    assert updated(phone).status == 0
    shop.publish(2)
    shop.file(2).write_bytes(b"other bytes")
    said = updated(phone)
    assert (said.status, "damaged on the server" in said.error) == (1, True)
    assert current(phone) == shop.whole(1)


def test_kills_at_any_moment_leave_a_whole_model(shop, phone, monkeypatch):
    """Each version replaces one; most kills come in its download."""

    def slow() -> None:
        time.sleep(0.01)

    shop.heard(phone, monkeypatch, "fetch", slow)
    draws, kills = random.Random(0), 0
    for seed in range(1, 5):
        version = shop.publish(seed, size=12 * PART, card_bytes=4 * PART)
        old, new = shop.whole(version - 1) if version > 1 else None, shop.whole(version)
        longest = 0.1
        while True:
            process = subprocess.Popen(command_of(phone), stdout=subprocess.DEVNULL)
            try:
                assert process.wait(draws.uniform(0, longest)) == 0
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
            longest *= 1.2  # until it suffices, however busy the machine
            if (found := current(phone)) == new:
                break
            assert found == old
        assert updated(phone).version == version
        assert kept(phone) == [str(v) for v in (version - 1, version) if v]
    assert kills > 8


def test_a_process_that_is_to_end_says_so(shop, phone, monkeypatch):
    shop.publish(1)
    fetched = shop.heard(phone, monkeypatch, "fetch", lambda: time.sleep(0.3))
    with subprocess.Popen(command_of(phone), stderr=subprocess.PIPE) as process:
        until(lambda: fetched, "no part is fetched")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == LATER
    assert current(phone) is None
    assert updated(phone).news == "new"


def test_two_processes_update_a_model_one_after_the_other(shop, phone, monkeypatch):
    shop.publish(1)
    assert updated(phone).status == 0
    with (phone.state / "models" / NAME / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        said = updated(phone)
        assert (said.status, "another fedhead-phone uses it" in said.error) == (LATER, True)
    shop.publish(2, size=8 * PART)
    shop.heard(phone, monkeypatch, "fetch", lambda: time.sleep(0.02))
    crowd = [subprocess.Popen(command_of(phone), stderr=subprocess.DEVNULL) for _ in range(6)]
    ends = [process.wait(60) for process in crowd]
    assert {*ends} <= {0, LATER}
    assert 0 in ends
    assert current(phone) == shop.whole(2)
    assert kept(phone) == ["1", "2"]


def test_a_model_is_updated_while_the_phone_takes_part(shop, phone):
    phone.start()
    until(lambda: (phone.state / "lock").exists(), "no lock")
    shop.publish(1)
    assert updated(phone).news == "new"
    assert current(phone) == shop.whole(1)
    phone.stop()
