"""The C++ phone asks a server that means it no good for a model: it refuses, nothing is left."""

from __future__ import annotations

import hashlib
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from common.phones import phones_pb2 as pb
from common.signing.statement import Signed, Statement
from simulations.deploy.signing_key import sign
from tests.client.native_hostile import Hostile, lone_phone, meet, serving
from tests.client.native_models import FINGERPRINT, NAME, PART, Said, current, trust, updated
from tests.client.native_phones import NativePhone

# A build takes minutes on a busy machine.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

KEY = generate_private_key(SECP256R1())
DATA, CARD = random.Random(1).randbytes(2 * PART), b"{}"


@pytest.fixture
def phone(tmp_path: Path, phone_program) -> NativePhone:
    return lone_phone(tmp_path, phone_program("executorch"))


def blob(whole: bytes, **changes: Any) -> pb.Blob:
    """A blob of these bytes; those of at most 64 KiB are in it."""
    facts = {
        "sha256": hashlib.sha256(whole).hexdigest(), "size": len(whole),
        "data": whole if len(whole) <= 64 << 10 else b"",
    }  # fmt: skip
    return pb.Blob(**(facts | changes))


def model(**changes: Any) -> bytes:
    facts: dict[str, Any] = {"name": NAME, "version": 3, "file": blob(DATA), "card": blob(CARD)}
    return pb.Model(**(facts | changes)).SerializeToString()


def parts(whole: bytes, **changes: Any) -> list[bytes]:
    """The replies to the calls for a blob's parts."""
    sha256 = hashlib.sha256(whole).hexdigest()
    made = [
        {"sha256": sha256, "size": len(whole), "offset": at, "data": whole[at : at + PART]}
        for at in range(0, len(whole), PART)
    ]
    return [pb.Part(**(part | changes)).SerializeToString() for part in made]


def met(phone: NativePhone, *replies: bytes) -> tuple[Said, int]:
    """How a call ends that is answered so, and how many questions the server got."""
    handler = Hostile(replies)
    with serving(phone.path.parent / "server", handler) as port:
        meet(phone, port)
        return updated(phone), handler.served


def left(phone: NativePhone) -> list[str]:
    """The files of the phone's state."""
    found = [path for path in phone.state.rglob("*") if path.is_file() and path.name != "lock"]
    return [str(path.relative_to(phone.state)) for path in found]


def test_what_is_as_it_should_be_is_taken(phone):
    """Only so do the tests below say anything."""
    said, _ = met(phone, model(), *parts(DATA))
    assert (said.status, said.news) == (0, "new")
    assert current(phone) == (3, DATA, CARD)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"name": "other.pte"}, "name"),
        ({"name": ""}, "name"),
        ({"name": "../../x"}, "name"),
        ({"version": 0}, "version"),
        ({"version": 1_000_000_000}, "version"),
        ({"version": 2**64 - 1}, "version"),
        ({"file": blob(DATA, sha256="")}, "SHA-256"),
        ({"file": blob(DATA, sha256="../" * 21 + "x")}, "SHA-256"),
        ({"file": blob(DATA, sha256="A" * 64)}, "SHA-256"),
        ({"file": blob(DATA, sha256="a" * 63)}, "SHA-256"),
        ({"card": blob(CARD, sha256="../../x")}, "SHA-256"),
        ({"card": pb.Blob()}, "size of its card"),
        ({"card": blob(DATA)}, "card"),
        ({"file": blob(b"")}, "size"),
        ({"file": blob(DATA, size=(256 << 20) + 1)}, "size"),
        ({"file": blob(DATA, size=2**64 - 1)}, "size"),
        ({"card": blob(b"")}, "size of its card"),
        ({"card": blob(CARD, size=(8 << 20) + 1)}, "size of its card"),
    ],
)
def test_an_impossible_offer_is_refused_before_a_byte_is_fetched(changes, word, phone):
    said, asked = met(phone, model(**changes))
    assert (said.status, asked) == (1, 1)
    assert f"impossible-model: the gateway offers a model with an impossible {word}" in said.error
    assert not left(phone)


@pytest.mark.parametrize(("which", "most"), [("file", 256), ("card", 8)])
def test_what_is_too_large_is_refused_with_the_limit(which, most, phone):
    size = (most << 20) + 1
    said, _ = met(phone, model(**{which: blob(DATA, size=size)}))
    assert f"{size} bytes, expected 1 to {most << 20} ({most} MiB)" in said.error


@pytest.mark.parametrize(
    "others", [{"file": DATA[1:]}, {"card": b"[]"}, {"file": DATA[1:], "card": b"[]"}]
)
@pytest.mark.parametrize("damaged", [(), (NAME,), (NAME, "card.json")])
def test_other_bytes_under_the_number_in_use_are_refused(others, damaged, phone):
    """What is in use stays, damaged or not, and is mended where the right bytes are offered."""
    assert met(phone, model(), *parts(DATA))[0].status == 0
    for name in damaged:
        (phone.state / "models" / NAME / "3" / name).write_bytes(b"damaged")
    before = current(phone)
    said, asked = met(phone, model(**{name: blob(data) for name, data in others.items()}))
    assert (said.status, asked) == (1, 1)
    assert (
        "impossible-model: version 3 is in use here with other bytes than the gateway offers"
        in said.error
    )
    assert current(phone) == before
    assert met(phone, model(), *parts(DATA) if damaged else ())[0].status == 0
    assert current(phone) == (3, DATA, CARD)
    data, card = others.get("file", DATA), others.get("card", CARD)
    offer = model(version=4, file=blob(data), card=blob(card))
    assert met(phone, offer, *parts(data))[0].status == 0
    assert current(phone) == (4, data, card)


def test_a_model_may_be_called_current(phone):
    for version, data in ((1, b"one"), (2, b"two")):
        handler = Hostile([model(name="current", version=version, file=blob(data))])
        with serving(phone.path.parent / "server", handler) as port:
            meet(phone, port)
            said = updated(phone, "current")
        assert (said.status, said.version, said.news) == (0, version, "new")
        assert said.path == phone.state / "models" / "current" / str(version) / "current"
        assert current(phone, "current") == (version, data, CARD)


@pytest.mark.parametrize(("which", "size"), [("file", 256 << 20), ("card", 8 << 20)])
def test_the_largest_model_is_fetched(which, size, phone):
    sha256 = "a" * 64
    offer = {"version": 999_999_999, which: pb.Blob(sha256=sha256, size=size)}
    first = pb.Part(sha256=sha256, size=size, data=bytes(PART)).SerializeToString()
    said, asked = met(phone, model(**offer), first, b"")
    assert (said.status, asked) == (1, 3)
    assert f"damaged-blob: a part of 0 bytes at 0, expected {PART} at {PART}" in said.error


@pytest.mark.parametrize("reply", [b"", b"\xff" * 100, random.Random(2).randbytes(5000)])
def test_noise_is_refused(reply, phone):
    said, asked = met(phone, reply)
    assert (said.status, asked) == (1, 1)
    assert not left(phone)


def test_a_reply_without_end_is_cut_off(phone):
    said, _ = met(phone, model(statement=bytes(64 << 20)))
    assert said.status == 1
    assert not left(phone)


def test_wrong_bytes_are_fetched_twice_and_leave_nothing(phone):
    """What is in use stays; and where the second try is right, all is well."""
    assert met(phone, model(), *parts(DATA))[0].status == 0
    new = random.Random(2).randbytes(2 * PART)
    offer, right = model(version=4, file=blob(new)), parts(new)
    wrong = [right[0], parts(new, data=bytes(PART))[1]]
    said, asked = met(phone, offer, *wrong, *wrong)
    assert (said.status, asked) == (1, 5)
    assert "damaged-blob: its bytes do not have the SHA-256" in said.error
    assert current(phone) == (3, DATA, CARD)
    folder = f"models/{NAME}"
    kept = [f"{folder}/3/{NAME}", f"{folder}/3/card.json", f"{folder}/3/.sums"]
    card = f"{folder}/parts/{hashlib.sha256(CARD).hexdigest()}"
    assert {*left(phone)} == {*kept, f"{folder}/current", card}
    said, asked = met(phone, offer, *wrong, *right)
    assert (said.status, asked) == (0, 5)
    assert current(phone) == (4, new, CARD)


@pytest.mark.parametrize("which", ["file", "card"])
def test_wrong_bytes_in_the_offer_are_refused(which, phone):
    small = {"file": blob(b"a file"), "card": blob(b"a card")} | {which: blob(b"small")}
    for data in (b"smalL", b"smal", b"small " * 500_000):
        said, asked = met(phone, model(**small | {which: blob(b"small", data=data)}))
        assert (said.status, asked) == (1, 1)
        assert "damaged-blob" in said.error
        assert not [path for path in left(phone) if path.endswith((".part", "current", NAME))]


@pytest.mark.parametrize(
    "changes",
    [
        {"data": b""}, {"data": b"x"}, {"data": bytes(PART - 1)}, {"data": bytes(PART + 1)},
        {"offset": 1}, {"size": 2 * PART - 1}, {"sha256": "b" * 64},
    ],
)  # fmt: skip
def test_a_part_that_is_not_what_was_asked_for_is_the_last_one(changes, phone):
    said, asked = met(phone, model(), *parts(DATA, **changes))
    assert (said.status, asked) == (1, 2)
    assert "damaged-blob: a part of" in said.error
    assert current(phone) is None


def test_beginnings_of_files_do_not_pile_up(phone):
    for version in range(1, 5):
        data = random.Random(version).randbytes(3 * PART)
        offer = model(version=version, file=blob(data))
        said, asked = met(phone, offer, *parts(data)[:2], b"")
        assert (said.status, asked) == (1, 4)
        (partial,) = (phone.state / "models" / NAME / "parts").glob("*.part")
        assert partial.read_bytes() == data[: 2 * PART]


def signed(data: bytes, card: bytes) -> Signed:
    now = int(time.time())
    sha256 = [hashlib.sha256(content).hexdigest() for content in (data, card)]
    facts = (NAME, 3, len(data), *sha256, FINGERPRINT, now - 10, now + 1000)
    return sign(KEY, Statement("model", *facts))


CARDS = {
    "plain": json.dumps({"fingerprint": FINGERPRINT}),
    "with blanks": f'\n {{ "a" : [1.5e-3, null, {{}}] , "fingerprint"\t:\r\n"{FINGERPRINT}" }} ',
    "escaped": json.dumps({'"fingerprint": "\\': '\\"', "fingerprint": FINGERPRINT, "b": "\\"}),
    "deep": f'{{"a": {"[" * 10**6}{"]" * 10**6}, "fingerprint": "{FINGERPRINT}"}}',
}  # fmt: skip
NO_CARDS = {
    "empty": " ", "no object": "[]", "another": json.dumps({"fingerprint": "1" * 64}),
    "none": "{}", "inside": json.dumps({"a": {"fingerprint": FINGERPRINT}}),
    "a key alone": '{"a": "fingerprint"}', "a number": '{"fingerprint": 7}',
    "cut off": f'{{"fingerprint": "{FINGERPRINT}"', "an open text": '{"fingerprint": "\\',
    "behind": f'{{}} {{"fingerprint": "{FINGERPRINT}"}}', "deep": '{"a": ' + "[" * 10**6,
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "status"),
    [*((text, 0) for text in CARDS.values()), *((text, 1) for text in NO_CARDS.values())],
    ids=[*CARDS, *(f"no card: {name}" for name in NO_CARDS)],
)
def test_the_fingerprint_is_found_in_any_card(text, status, phone):
    trust(phone, KEY)
    card = text.encode()
    made = signed(DATA, card)
    offer = model(card=blob(card), statement=made.statement, signature=made.signature)
    of_card = parts(card) if len(card) > 64 << 10 else []
    said, _ = met(phone, offer, *of_card, *parts(DATA))
    assert said.status == status, said
    assert current(phone) == (None if status else (3, DATA, card))
    assert status == 0 or "unsigned-model: " in said.error
    assert status == 0 or not left(phone)


def test_a_statement_of_any_length_is_refused(phone):
    trust(phone, KEY)
    made = signed(DATA, CARD)
    for statement, signature in (
        (b"x" * 2_000_000, made.signature),
        (made.statement, b"x" * 2_000_000),
        (made.statement, b""),
        (b"", made.signature),
        (made.statement, made.signature + b"\0"),
        (made.statement + b"\n", made.signature),
    ):
        said, asked = met(phone, model(statement=statement, signature=signature))
        assert (said.status, asked) == (1, 1)
        assert "unsigned-model: no trusted key has signed it" in said.error
        assert not left(phone)
