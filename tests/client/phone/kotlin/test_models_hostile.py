"""A Kotlin phone loads no model that a gateway may not give it, and no bytes that have changed."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from common.phones.phones_pb2 import Blob, FetchRequest, Model, Part
from common.phones.wire import PART
from common.signing.statement import Statement
from tests.client.phone.conftest import FakeGateway, Standing, sha256
from tests.client.phone.kotlin.conftest import MODEL, Updated
from tests.client.phone.kotlin.trusting import trust

pytestmark = pytest.mark.slow

Fetch = Callable[..., Updated]
KEYS = [ec.generate_private_key(ec.SECP256R1()) for _ in range(3)]
CURRENT, FOLLOWING, FOREIGN = KEYS
CONTENT = bytes(range(256)) * 3000  # three parts
FINGERPRINT = "0f" * 32
CARD = b'{"fingerprint": "' + FINGERPRINT.encode() + b'"}'


def offer(gateway: FakeGateway, content: bytes = CONTENT, **changes: Any) -> None:
    """Let the gateway have a model, but for what a test changes."""
    facts = {
        "name": MODEL, "version": 3, "file": gateway.blob(content),
        "card": gateway.blob(CARD, inline=True), **changes,
    }  # fmt: skip
    gateway.model = Model(**facts)


def named(content: bytes, **changes: Any) -> Blob:
    """A blob of these bytes, but for what a test changes."""
    return Blob(**({"sha256": sha256(content), "size": len(content)} | changes))


def files(folder: Path) -> list[Path]:
    """What is kept of models."""
    found = (folder / "state/models").rglob("*")
    return [path for path in found if path.is_file() and path.name != ".lock"]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another name": ({"name": "other.pte"}, "another name than model.pte"),
    "no version": ({"version": 0}, "an impossible version"),
    "a version without end": ({"version": 10**9}, "an impossible version"),
    "a version below zero in Kotlin": ({"version": 2**64 - 1}, "an impossible version"),
    "no hash": ({"file": named(CONTENT, sha256="../../../phone.token")}, "no SHA-256"),
    "no file": ({"file": named(b"")}, "a file of an impossible size"),
    "too large a file": (
        {"file": named(CONTENT, size=(256 << 20) + 1)}, "a file of an impossible size"
    ),
    "a size below zero in Kotlin": (
        {"file": named(CONTENT, size=2**64 - 5)}, "a file of an impossible size"
    ),
    "no card": ({"card": Blob()}, "no SHA-256"),
    "too large a card": (
        {"card": named(CARD, size=(8 << 20) + 1)}, "a card of an impossible size"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_an_answer_that_cannot_be_is_refused_before_anything_is_fetched(
    what: str, gateway: FakeGateway, folder: Path, fetch: Fetch
) -> None:
    changes, words = WRONG[what]
    offer(gateway, **changes)
    problem = f"the gateway's answer has {words}"
    assert fetch(folder) == Updated(None, is_new=False, problem=problem)
    assert not gateway.fetched
    assert not files(folder)


@pytest.mark.parametrize("name", ["../x", "a/b", ".lock", "", "x" * 101, "current", "card.json"])
def test_a_name_that_is_no_folders_is_refused_in_words(
    name: str, folder: Path, java: Callable[..., list[str]]
) -> None:
    command = java("dev.fedhead.jvm.MainKt", folder, "--model", name)
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert f'"{name}" cannot name a model' in done.stderr
    assert not (folder / "state/models").exists()


SIGNED: dict[str, dict[str, Any]] = {
    "by the key": {},
    "by the next key": {"key": FOLLOWING},
    "by a clock that is an hour off": {"created": 3_500, "expires": 9_999},
    "just expired, by that clock": {"created": -9_999, "expires": -3_500},
}
UNSIGNED: dict[str, tuple[dict[str, Any], str]] = {
    "not at all": ({"key": None}, "it is not signed"),
    "by a foreign key": ({"key": FOREIGN}, "not signed by a key that the app trusts"),
    "and changed": ({"changed": True}, "not signed by a key that the app trusts"),
    "with more bytes than can be": ({"padding": 1024}, "not signed by a key that the app trusts"),
    "as a backbone": ({"kind": "backbone"}, "not a statement of fedhead artifact v1 about a model"),
    "as another model": ({"name": "other.pte"}, "it was signed as other.pte"),
    "as another version": ({"version": 4}, "version 4 was signed"),
    "with another size": ({"size": len(CONTENT) + 1}, "another file was signed"),
    "with another file": ({"sha256": "1" * 64}, "another file was signed"),
    "with another card": ({"card": "1" * 64}, "another card was signed"),
    "with another fingerprint": ({"fingerprint": "1" * 64}, "another fingerprint was signed"),
    "in the future": ({"created": 3_700, "expires": 9_999}, "signed in the future"),
    "until yesterday": ({"created": -90_000, "expires": -3_700}, "has expired"),
}


def offer_signed(
    gateway: FakeGateway, content: bytes = CONTENT, *,
    key: ec.EllipticCurvePrivateKey | None = CURRENT,
    changed: bool = False, padding: int = 0, offered: int = 3, created: int = 0, expires: int = 60,
    **changes: Any,
) -> None:  # fmt: skip
    """Let the gateway have a model with a statement that differs from it as a test wants.

    Times are seconds from now.
    """
    now = int(time.time())
    facts: dict[str, Any] = {
        "kind": "model", "name": MODEL, "version": offered, "size": len(content),
        "sha256": sha256(content), "card": sha256(CARD), "fingerprint": FINGERPRINT,
        "created": now + created, "expires": now + expires,
    }  # fmt: skip
    statement = Statement(**facts | changes).to_bytes()
    signature = (key or CURRENT).sign(statement, ec.ECDSA(SHA256())) + bytes(padding)
    if changed:
        statement = statement.replace(b"version 3", b"version 9")
    both = {"statement": statement, "signature": signature} if key else {}
    offer(gateway, content, version=offered, **both)


@pytest.mark.parametrize("how", SIGNED)
def test_a_model_that_is_signed_is_loaded(
    how: str, gateway: FakeGateway, folder: Path, fetch: Fetch
) -> None:
    trust(folder, CURRENT, FOLLOWING)
    offer_signed(gateway, **SIGNED[how])
    model = folder / "state/models" / MODEL / "3" / MODEL
    assert fetch(folder) == Updated(model, is_new=True, problem="")
    note = (folder / "state/accepted/model" / MODEL).read_bytes()[:-32].decode()
    assert note == f"3 {sha256(CONTENT)}"


@pytest.mark.parametrize("how", UNSIGNED)
def test_no_byte_is_fetched_of_a_model_that_is_not_signed_as_it_must_be(
    how: str, gateway: FakeGateway, folder: Path, fetch: Fetch
) -> None:
    trust(folder, CURRENT, FOLLOWING)
    changes, words = UNSIGNED[how]
    offer_signed(gateway, **changes)
    found = fetch(folder)
    assert (found.model, found.is_new) == (None, False)
    assert found.problem.startswith("unsigned-model: ")
    assert words in found.problem
    assert not gateway.fetched
    assert not files(folder)
    assert not (folder / "state/accepted").exists()


def test_a_phone_that_has_lost_its_note_of_what_it_accepted_accepts_nothing(
    gateway: FakeGateway, folder: Path, fetch: Fetch
) -> None:
    trust(folder, CURRENT)
    (folder / "state/accepted/model").mkdir(parents=True)
    (folder / "state/accepted/model" / MODEL).write_bytes(b"2 of some file")
    offer_signed(gateway)
    assert "the note of the last accepted version is damaged" in fetch(folder).problem
    assert not gateway.fetched


def test_a_model_of_the_time_before_there_were_keys_is_not_replaced_by_an_older_one(
    gateway: FakeGateway, folder: Path, fetch: Fetch
) -> None:
    offer(gateway, version=5)
    in_use = fetch(folder).model
    assert in_use
    trust(folder, CURRENT)
    offer_signed(gateway, b"older", offered=4)
    older = "unsigned-model: version 4 is older than 5, which was accepted before"
    assert fetch(folder) == Updated(in_use, is_new=False, problem=older)
    offer_signed(gateway, b"other bytes", offered=5)
    assert "another file was accepted as version 5 before" in fetch(folder).problem
    assert in_use.read_bytes() == CONTENT
    # The same bytes are fine once they are signed.
    offer_signed(gateway, offered=5)
    assert fetch(folder) == Updated(in_use, is_new=False, problem="")


def test_without_keys_an_older_version_changes_nothing_nor_do_other_bytes_of_the_same(
    gateway: FakeGateway, folder: Path, fetch: Fetch
) -> None:
    offer(gateway)
    in_use = fetch(folder).model
    assert in_use
    gateway.fetched.clear()
    offer(gateway, b"older", version=2)
    assert fetch(folder) == Updated(in_use, is_new=False, problem="")
    offer(gateway, b"other bytes")
    problem = "the gateway has other bytes as version 3 than those in use"
    assert fetch(folder) == Updated(in_use, is_new=False, problem=problem)
    assert not gateway.fetched
    assert in_use.read_bytes() == CONTENT
    # Where the file in use is damaged, an older one does not take its place either.
    in_use.write_bytes(b"x" + CONTENT[1:])
    offer(gateway, b"older", version=2)
    problem = "version 3 is damaged, and the gateway has only 2"
    assert fetch(folder) == Updated(None, is_new=False, problem=problem)


@pytest.mark.parametrize("where", ["file", "card"])
def test_wrong_bytes_are_removed_and_fetched_once_more(
    where: str, gateway: FakeGateway, folder: Path, fetch: Fetch
) -> None:
    offer(gateway, b"the one before", version=2)
    before = fetch(folder).model
    assert before
    card = CARD + b" " * PART  # it is no part of the message
    offer(gateway, card=gateway.blob(card))
    right = {"file": CONTENT, "card": card}[where]
    gateway.blobs[sha256(right)] = b"x" + right[1:]
    gateway.fetched.clear()
    problem = "a fetched blob does not have its SHA-256"
    assert fetch(folder) == Updated(before, is_new=False, problem=problem)
    asked = [request.offset for request in gateway.fetched if request.sha256 == sha256(right)]
    assert asked == [*range(0, len(right), PART)] * 2
    assert sha256(right) not in {path.name.removesuffix(".part") for path in files(folder)}
    assert before.read_bytes() == b"the one before"
    # What lies there from elsewhere is not what comes now; the second try is right.
    gateway.blobs[sha256(right)] = right
    partial = folder / "state/models" / MODEL / ".fetched" / f"{sha256(right)}.part"
    partial.write_bytes(b"y" * PART)
    found = fetch(folder)
    assert found.is_new
    assert found.model
    assert found.model.read_bytes() == CONTENT
    assert found.model.with_name("card.json").read_bytes() == card


class SparingGateway(FakeGateway):
    """Sends parts that hold nothing, or too much."""

    size = 0

    async def fetch(self, request: FetchRequest, context: Any) -> Part:
        await super().fetch(request, context)
        return Part(data=bytes(self.size))


@pytest.mark.parametrize("size", [0, PART - 1, PART + 1])
def test_parts_of_another_length_do_not_keep_a_phone_busy(
    size: int, gateway: FakeGateway, standing: Standing, folder: Path, fetch: Fetch
) -> None:
    sparing = SparingGateway(gateway.folder)
    sparing.size = size
    standing.start(sparing)
    toml = folder / "phone.toml"
    toml.write_text(toml.read_text().replace(str(gateway.port), str(sparing.port)))
    offer(sparing)
    problem = f"a part of a blob has {size} bytes, expected {PART}"
    assert fetch(folder) == Updated(None, is_new=False, problem=problem)
    assert len(sparing.fetched) == 2
    assert not files(folder)


def test_a_card_in_the_message_has_its_own_sha256(
    gateway: FakeGateway, folder: Path, fetch: Fetch
) -> None:
    offer(gateway, card=named(CARD, data=b"x" + CARD[1:]))
    problem = "a blob's bytes do not have its size or its SHA-256"
    assert fetch(folder) == Updated(None, is_new=False, problem=problem)
    assert not files(folder)


@pytest.mark.parametrize("damaged", [MODEL, "card.json", ".sums", "current"])
@pytest.mark.parametrize("gone", [False, True])
def test_a_damaged_model_is_not_given_to_the_app_and_fetched_again(
    damaged: str, gone: bool, gateway: FakeGateway, folder: Path, fetch: Fetch
) -> None:
    offer(gateway)
    in_use = fetch(folder).model
    assert in_use
    shelf = folder / "state/models" / MODEL
    path = shelf / damaged if damaged == "current" else shelf / "3" / damaged
    if gone:
        path.unlink()
    else:
        path.write_bytes(b"x" + path.read_bytes()[1:])
    kept, gateway.model = gateway.model, None
    found = fetch(folder)  # there is nothing to repair it with
    assert (found.model, found.is_new) == (None, False)
    gateway.model = kept
    gateway.fetched.clear()
    assert fetch(folder) == Updated(in_use, is_new=True, problem="")
    assert in_use.read_bytes() == CONTENT
    assert in_use.with_name("card.json").read_bytes() == CARD
    # Where only the note of what is in use was lost, all bytes are there.
    assert bool(gateway.fetched) == (damaged != "current")


def test_models_that_never_became_whole_do_not_fill_the_disk(
    gateway: FakeGateway, folder: Path, fetch: Fetch
) -> None:
    offer(gateway)
    in_use = fetch(folder).model
    for version in range(4, 8):
        content = bytes([version]) * (2 * PART)
        offer(gateway, content, version=version)
        del gateway.blobs[sha256(content)]
        assert fetch(folder) == Updated(in_use, is_new=False, problem="Fetch: no such blob")
        partial = folder / "state/models" / MODEL / ".fetched" / f"{sha256(content)}.part"
        partial.write_bytes(content[:PART])
    names = {path.name for path in files(folder)}
    assert names == {"current", MODEL, "card.json", ".sums", partial.name}
