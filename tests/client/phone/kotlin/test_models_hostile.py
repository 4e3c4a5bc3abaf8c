"""A Kotlin phone loads no model that a gateway may not give it, and no bytes that have changed."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping
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
    "no file": (
        {"file": named(b"")}, "a file of 0 bytes, expected 1 to 268435456 (256 MiB)"
    ),
    "too large a file": (
        {"file": named(CONTENT, size=(256 << 20) + 1)},
        "a file of 268435457 bytes, expected 1 to 268435456 (256 MiB)",
    ),
    "a size below zero in Kotlin": (
        {"file": named(CONTENT, size=2**64 - 5)},
        "a file of 18446744073709551611 bytes, expected 1 to 268435456 (256 MiB)",
    ),
    "no card": ({"card": Blob()}, "no SHA-256"),
    "too large a card": (
        {"card": named(CARD, size=(8 << 20) + 1)},
        "a card of 8388609 bytes, expected 1 to 8388608 (8 MiB)",
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


PATTERN = "a letter or digit, then at most 99 letters, digits, '.', '_' or '-'"
NAMES = dict.fromkeys(["../x", "a/b", ".lock", "", "x" * 101], PATTERN) | dict.fromkeys(
    ["card.json", "artifact.json", "signed"], "each version has such a file of its own"
)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_no_models_is_refused_in_words(
    name: str, folder: Path, java: Callable[..., list[str]]
) -> None:
    command = java("dev.fedhead.jvm.MainKt", folder, "--model", name)
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert f'"{name}" cannot name a model: {NAMES[name]}\n' in done.stderr
    assert not (folder / "state/models").exists()


@pytest.mark.parametrize("name", ["current", "3", "card.json.pte"])
def test_a_models_name_may_be_like_that_of_a_file_beside_the_versions(
    name: str, gateway: FakeGateway, folder: Path, fetch: Fetch
) -> None:
    shelf = folder / "state/models" / name
    for version, content in enumerate([b"the first", CONTENT, b"the third"], 1):
        offer(gateway, content, name=name, version=version)
        path = shelf / str(version) / name
        assert fetch(folder, name) == Updated(path, is_new=True, problem="")
        assert path.read_bytes() == content
        assert (shelf / "current").read_text() == f"{version}\n"
    assert {path.name for path in shelf.glob("[0-9]")} == {"2", "3"}


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


def with_sum(content: bytes) -> bytes:
    """A small file, as the phone writes them."""
    return content + bytes.fromhex(sha256(content))


NOTES = {
    "damaged": b"2 of some file",
    "empty": with_sum(b""),
    "a version alone": with_sum(b"2"),
    "no number": with_sum(b"two " + b"1" * 64),
    "no number that has room": with_sum(b"9" * 30 + b" " + b"1" * 64),
    "no sha256": with_sum(b"2 of some file"),
    "more than a note": with_sum(b"2 " + b"1" * 64 + b" and more"),
}


@pytest.mark.parametrize("what", NOTES)
def test_a_phone_that_has_lost_its_note_of_what_it_accepted_accepts_nothing(
    what: str, gateway: FakeGateway, folder: Path, fetch: Fetch
) -> None:
    trust(folder, CURRENT)
    (folder / "state/accepted/model").mkdir(parents=True)
    (folder / "state/accepted/model" / MODEL).write_bytes(NOTES[what])
    offer_signed(gateway)
    problem = "unsigned-model: the note of the last accepted version is damaged"
    assert fetch(folder) == Updated(None, is_new=False, problem=problem)
    assert not gateway.fetched
    assert not files(folder)


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


OTHER = "version 3 is in use here with other bytes than the gateway has as that version"


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
    assert fetch(folder) == Updated(in_use, is_new=False, problem=OTHER)
    offer(gateway, card=gateway.blob(b"another card", inline=True))
    assert fetch(folder) == Updated(in_use, is_new=False, problem=OTHER)
    assert not gateway.fetched
    assert in_use.read_bytes() == CONTENT
    assert in_use.with_name("card.json").read_bytes() == CARD


def test_with_keys_a_version_in_use_gets_no_other_card(
    gateway: FakeGateway, folder: Path, fetch: Fetch
) -> None:
    trust(folder, CURRENT)
    offer_signed(gateway)
    in_use = fetch(folder).model
    assert in_use
    card = CARD + b" "
    offer_signed(gateway, card=sha256(card))
    assert gateway.model
    gateway.model.card.CopyFrom(gateway.blob(card, inline=True))
    assert fetch(folder) == Updated(in_use, is_new=False, problem=OTHER)
    assert in_use.with_name("card.json").read_bytes() == CARD


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("damaged", [MODEL, "card.json", ".sums"])
def test_a_damaged_model_is_not_in_use_where_the_gateway_has_an_older_one(
    damaged: str, signed: bool, gateway: FakeGateway, folder: Path, fetch: Fetch
) -> None:
    if signed:
        trust(folder, CURRENT)
    offer_signed(gateway)
    in_use = fetch(folder).model
    assert in_use
    path = in_use.with_name(damaged)
    path.write_bytes(b"x" + path.read_bytes()[1:])
    gateway.fetched.clear()
    offer_signed(gateway, b"older", offered=2)
    problem = "version 3 is damaged, and the gateway has only 2"
    if signed:
        problem = "unsigned-model: version 2 is older than 3, which was accepted before"
    assert fetch(folder) == Updated(None, is_new=False, problem=problem)
    assert not gateway.fetched


def test_a_damaged_model_is_not_replaced_by_other_bytes_of_its_version(
    gateway: FakeGateway, folder: Path, fetch: Fetch
) -> None:
    offer(gateway)
    in_use = fetch(folder).model
    assert in_use
    in_use.write_bytes(b"x" + CONTENT[1:])
    offer(gateway, b"other bytes")
    assert fetch(folder) == Updated(None, is_new=False, problem=OTHER)
    offer(gateway)
    assert fetch(folder) == Updated(in_use, is_new=True, problem="")
    assert in_use.read_bytes() == CONTENT


def test_sums_that_are_none_make_a_version_missing(
    gateway: FakeGateway, folder: Path, fetch: Fetch
) -> None:
    offer(gateway)
    in_use = fetch(folder).model
    assert in_use
    in_use.with_name(".sums").write_bytes(with_sum(b"of another form"))
    assert fetch(folder) == Updated(in_use, is_new=True, problem="")


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


class ChangingGateway(FakeGateway):
    """Changes some fields of the part at an offset."""

    offset = 0
    changes: Mapping[str, Any] = {}

    async def fetch(self, request: FetchRequest, context: Any) -> Part:
        part = await super().fetch(request, context)
        if part.offset == self.offset:
            for name, value in self.changes.items():
                setattr(part, name, value)
        return part


@pytest.fixture
def changing(gateway: FakeGateway, standing: Standing, folder: Path) -> ChangingGateway:
    made = ChangingGateway(gateway.folder)
    standing.start(made)
    toml = folder / "phone.toml"
    toml.write_text(toml.read_text().replace(str(gateway.port), str(made.port)))
    offer(made)
    return made


@pytest.mark.parametrize("size", [0, PART - 1, PART + 1])
def test_parts_of_another_length_do_not_keep_a_phone_busy(
    size: int, changing: ChangingGateway, folder: Path, fetch: Fetch
) -> None:
    changing.changes = {"data": bytes(size)}
    problem = f"a part of a blob has {size} bytes, expected {PART}"
    assert fetch(folder) == Updated(None, is_new=False, problem=problem)
    assert len(changing.fetched) == 1
    assert not files(folder)


PARTS: dict[str, dict[str, Any]] = {
    "shorter": {"data": bytes(PART - 1)},
    "longer": {"data": bytes(PART + 1)},
    "of another blob": {"sha256": "1" * 64},
    "of no blob": {"sha256": ""},
    "of a blob of another size": {"size": len(CONTENT) + 1},
    "at another offset": {"offset": 0},
}


@pytest.mark.parametrize("what", PARTS)
def test_a_wrong_part_is_not_taken_and_what_came_before_it_stays(
    what: str, changing: ChangingGateway, folder: Path, fetch: Fetch
) -> None:
    changing.changes, changing.offset = PARTS[what], PART
    problem = f"a blob was asked for at byte {PART}, but the answer is another part"
    if data := PARTS[what].get("data"):
        problem = f"a part of a blob has {len(data)} bytes, expected {PART}"
    assert fetch(folder) == Updated(None, is_new=False, problem=problem)
    (partial,) = files(folder)
    assert partial.read_bytes() == CONTENT[:PART]
    changing.changes = {}
    found = fetch(folder).model
    assert found
    assert found.read_bytes() == CONTENT
    assert [request.offset for request in changing.fetched] == [0, PART, PART, 2 * PART]


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
