"""A phone takes no model from a gateway that says what cannot be, or sends other bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from client.phone.models import fetch_model
from client.phone.settings import read_phone
from common.errors import DeliveryError
from common.phones.phones_pb2 import Blob, Model
from common.phones.wire import PART
from tests.client.phone.conftest import FakeGateway, sha256

NAME = "model.pte"
CONTENT = bytes(range(256)) * 1500
CARD = b'{"fingerprint": "ab"}'
Command = Callable[..., tuple[int, str, str]]


def offer(gateway: FakeGateway, **changes: Any) -> None:
    facts: dict[str, Any] = {
        "name": NAME, "version": 3, "file": gateway.blob(CONTENT), "card": Blob(
            sha256=sha256(CARD), size=len(CARD), data=CARD
        ), **changes,
    }  # fmt: skip
    gateway.model = Model(**facts)


def named(content: bytes, **changes: Any) -> Blob:
    """A blob of these bytes, but for what a test changes."""
    return Blob(**({"sha256": sha256(content), "size": len(content)} | changes))


def test_a_command_fetches_a_model(fedhead: Command, gateway: FakeGateway, folder: Path) -> None:
    code, _, err = fedhead("phone", folder, "--model", NAME)
    assert (code, err.count("\n")) == (1, 1)
    assert "nothing is published" in err
    offer(gateway)
    code, out, _ = fedhead("phone", folder, "--model", NAME)
    model = folder / "state" / "models" / NAME / "current" / NAME
    assert (code, out) == (0, f"{model}: now {NAME} version 3; {len(CONTENT):,} bytes received\n")
    assert model.read_bytes() == CONTENT
    assert not gateway.check_ins  # it took part in nothing
    assert fedhead("phone", folder, "--model", NAME, "--once")[0] == 1
    assert fedhead("phone", folder, "--model", "../x")[0] == 1


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another name": ({"name": "other"}, "was asked for"),
    "no version": ({"version": 0}, "version 0"),
    "a version without end": ({"version": 10**9}, "version 1000000000"),
    "no hash": ({"file": named(CONTENT, sha256="x")}, "its file has no SHA-256"),
    "no file": ({"file": named(b"", size=0)}, "its file has 0 bytes"),
    "too large a file": ({"file": named(CONTENT, size=1 << 40)}, "its file has"),
    "no card": ({"card": Blob()}, "its card has no SHA-256"),
    "too large a card": ({"card": named(CARD, size=1 << 30)}, "its card has"),
    "another card": ({"card": named(CARD, data=b"{}")}, "its card holds other bytes"),
    "a card of no text": (
        {"card": named(b"\xff\xfe", data=b"\xff\xfe")}, "codec can't decode byte"
    ),
    "a card that is not there": ({"card": named(b"gone")}, "not offered now"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_an_answer_that_cannot_be_is_refused_before_anything_is_kept(
    what: str, gateway: FakeGateway, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    changes, words = WRONG[what]
    offer(gateway, **changes)
    with pytest.raises(DeliveryError, match=words) as caught:
        fetch_model(read_phone(folder), NAME)
    assert "\n" not in str(caught.value)
    assert not list((folder / "state").rglob("*.part"))
    assert not [path for path in (folder / "state").rglob(NAME) if path.is_file()]


def test_other_bytes_and_other_parts_than_promised_are_refused_and_the_next_fetch_is_clean(
    gateway: FakeGateway, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone = read_phone(folder)
    offer(gateway)
    key = sha256(CONTENT)
    gateway.blobs[key] = b"x" + CONTENT[1:]
    with pytest.raises(DeliveryError, match="is refused and removed"):
        fetch_model(phone, NAME)
    gateway.blobs[key] = CONTENT[: PART + 5]  # which would be asked for without end
    with pytest.raises(DeliveryError, match="bytes of another part"):
        fetch_model(phone, NAME)
    gateway.blobs[key] = CONTENT
    assert fetch_model(phone, NAME).model.read_bytes() == CONTENT
    # An older version later changes nothing.
    offer(gateway, version=2, file=gateway.blob(b"older"))
    found = fetch_model(phone, NAME)
    assert (found.version, found.model.read_bytes()) == (3, CONTENT)


def test_other_bytes_under_the_number_in_use_are_refused(
    gateway: FakeGateway, folder: Path
) -> None:
    phone = read_phone(folder)
    offer(gateway)
    fetch_model(phone, NAME)
    offer(gateway, file=gateway.blob(b"another file"))
    with pytest.raises(DeliveryError, match="in use here with other bytes"):
        fetch_model(phone, NAME)
    offer(gateway)
    assert fetch_model(phone, NAME).model.read_bytes() == CONTENT


def test_a_gateway_that_has_no_room_for_calls_is_asked_again(
    gateway: FakeGateway, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    offer(gateway)
    full = grpc.StatusCode.CANCELLED
    gateway.failures = {"latest": [full], "fetch": [None, full]}
    assert fetch_model(read_phone(folder), NAME).model.read_bytes() == CONTENT
    assert gateway.failures == {"latest": [], "fetch": []}
