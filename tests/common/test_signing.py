"""A signed statement is these bytes and no others, and holds for the keys that are trusted."""

from __future__ import annotations

import base64
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.hashes import SHA256, SHA512
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import SignatureError
from common.signing.statement import Signed, Statement, read_signed
from common.signing.trust import TrustedKeys, key_id

# For other languages: these bytes, with this signature, hold for this key.
# Made once with the private key 20261128; each signing gives another signature.
GOLDEN = b"""\
fedhead artifact v1
kind model
name model.pt
version 3
size 2551234
sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
card 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae
fingerprint 486ea46224d1bb4fb680f34f7c9ad96a8f24ec88be73ea8e5a6c65260e9cb8a7
created 1795873446
expires 1827409446
"""
SIGNATURE = base64.b64decode(
    "MEUCIB++0qg0J5GS0oMtgEh6jYiogyH/LLosefjaila/XNycAiEAnoEL7kgghuFO3m3B04Z8yr/7Zv8iVWwBajn/dWAA1As="
)
PUBLIC = b"""\
-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEXdh+M0m63fODWPNL1a4XE5V+JLEO
PDX2HRmCnCaKFjUXlo9v4WWbiZeCAJkg63ye8wvUDz6dIBSJ5R9Aaj8NNg==
-----END PUBLIC KEY-----
"""
SIGNED = Signed(GOLDEN, SIGNATURE)
KEY = ec.derive_private_key(20261128, ec.SECP256R1())
TRUSTED = TrustedKeys({key_id(KEY.public_key()): KEY.public_key()})
DIGESTS = st.binary(min_size=32, max_size=32).map(bytes.hex)
# Of the group of P-256: s and ORDER - s are both good.
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def signed(statement: Statement, key: ec.EllipticCurvePrivateKey = KEY) -> Signed:
    data = statement.to_bytes()
    return Signed(data, key.sign(data, ec.ECDSA(SHA256())))


def now_valid(**changes: object) -> Statement:
    now = int(time.time())
    return replace(Statement.from_bytes(GOLDEN), created=now, expires=now + 9999, **changes)


def keys_in(folder: Path, *contents: bytes) -> Path:
    folder.mkdir()
    for number, content in enumerate(contents):
        file = folder / f"{number}.pub"
        file.write_bytes(content)
        file.chmod(0o644)
    return folder


def pem(key: object) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def test_the_golden_statement_is_written_read_and_verified(tmp_path) -> None:
    statement = Statement.from_bytes(GOLDEN)
    assert (statement.kind, statement.version, statement.expires) == ("model", 3, 1827409446)
    assert statement.to_bytes() == GOLDEN
    assert Signed.from_file(SIGNED.to_file()) == SIGNED
    trusted = TrustedKeys.read(keys_in(tmp_path / "trusted", PUBLIC))
    assert list(trusted.keys) == ["1b96ce945e30f70b"]
    assert trusted.verify(SIGNED, "it", expires=False) == statement


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not here")
def test_another_implementation_verifies_it(tmp_path) -> None:
    for name, content in (("p", PUBLIC), ("s", SIGNATURE), ("d", GOLDEN)):
        (tmp_path / name).write_bytes(content)
    command = ["openssl", "dgst", "-sha256", "-verify", "p", "-signature", "s", "d"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "Verified OK\n"


@given(st.integers(0, 8 * len(GOLDEN + SIGNATURE) - 1))
@settings(deadline=None)
def test_any_flipped_bit_of_statement_or_signature_is_refused(bit) -> None:
    data = bytearray(GOLDEN + SIGNATURE)
    data[bit // 8] ^= 1 << bit % 8
    changed = Signed(bytes(data[: len(GOLDEN)]), bytes(data[len(GOLDEN) :]))
    with pytest.raises(SignatureError, match="it is refused: it is not signed by 1b96"):
        TRUSTED.verify(changed, "it", expires=False)


@given(st.integers(0, 8 * len(SIGNED.to_file()) - 1))
@settings(deadline=None)
def test_any_flipped_bit_of_the_file_is_refused(bit) -> None:
    data = bytearray(SIGNED.to_file())
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SignatureError):
        TRUSTED.verify(Signed.from_file(bytes(data)), "it", expires=False)


@given(st.binary(max_size=1200), st.binary(max_size=200))
@settings(deadline=None)
def test_foreign_bytes_are_an_error_and_never_a_statement(statement, signature) -> None:
    for read in (Statement.from_bytes, Signed.from_file):
        with pytest.raises(SignatureError):
            read(statement)
    with pytest.raises(SignatureError):
        TRUSTED.verify(Signed(statement, signature), "it")


@given(
    st.builds(
        Statement,
        kind=st.sampled_from(["model", "backbone"]),
        name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", fullmatch=True),
        version=st.integers(1, 10**18 - 1),
        size=st.integers(0, 10**18 - 1),
        sha256=DIGESTS,
        card=DIGESTS,
        fingerprint=DIGESTS,
        created=st.integers(1, 10**11 - 1),
        expires=st.integers(1, 10**11 - 1),
    )
)
@settings(deadline=None)
def test_every_statement_is_read_as_it_was_written_and_bounded(statement) -> None:
    assert Statement.from_bytes(statement.to_bytes()) == statement
    file = signed(statement).to_file()
    assert len(file) <= 1024
    assert TRUSTED.verify(Signed.from_file(file), "it", expires=False) == statement


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 0}, {"version": -1}, {"size": -1}, {"name": "a\nversion 9"}, {"name": "../x"},
        {"name": ""}, {"kind": "key"}, {"sha256": "9F" * 32}, {"sha256": "9f"}, {"created": 0},
        {"expires": 10**11}, {"fingerprint": ""},
    ],
)  # fmt: skip
def test_what_no_statement_can_hold_is_not_signed(changes) -> None:
    with pytest.raises(SignatureError, match="cannot be signed"):
        replace(Statement.from_bytes(GOLDEN), **changes).to_bytes()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"version 3", b"version 03"),
        (b"version 3", b"version +3"),
        (b"version 3", b"version 3 "),
        (b"version 3\n", b"version 3\r\n"),
        (b"v1\n", b"v2\n"),
        (b"kind model", b"kind  model"),
        (b"expires 1827409446\n", b"expires 1827409446"),
        (b"expires 1827409446\n", b"expires 1827409446\n\n"),
        (b"version 3\nsize 2551234\n", b"size 2551234\nversion 3\n"),
        (b"version 3\n", b"version 3\nversion 3\n"),
    ],
)
def test_there_is_one_form_even_for_who_has_the_key(old, new) -> None:
    data = GOLDEN.replace(old, new)
    assert data != GOLDEN
    resigned = Signed(data, KEY.sign(data, ec.ECDSA(SHA256())))
    with pytest.raises(SignatureError, match="it is refused: not a statement"):
        TRUSTED.verify(resigned, "it", expires=False)


def test_a_signature_over_something_else_of_the_key_is_no_statement() -> None:
    for data in (b"", b"hello", GOLDEN.replace(b"fedhead artifact", b"fedhead tokens--")):
        other = Signed(data, KEY.sign(data, ec.ECDSA(SHA256())))
        with pytest.raises(SignatureError, match="refused"):
            TRUSTED.verify(other, "it", expires=False)


def test_another_algorithm_or_curve_is_never_tried() -> None:
    wrong = [
        KEY.sign(GOLDEN, ec.ECDSA(SHA512())),
        ec.generate_private_key(ec.SECP384R1()).sign(GOLDEN, ec.ECDSA(SHA256())),
        ed25519.Ed25519PrivateKey.generate().sign(GOLDEN),
        b"",
        SIGNATURE + b"\0",
        b"\0" * 2000,
    ]
    for signature in wrong:
        with pytest.raises(SignatureError, match="not signed by"):
            TRUSTED.verify(Signed(GOLDEN, signature), "it", expires=False)


def test_the_signature_that_anybody_can_make_of_a_signature_says_the_same() -> None:
    r, s = decode_dss_signature(SIGNATURE)
    other = Signed(GOLDEN, encode_dss_signature(r, ORDER - s))
    assert other != SIGNED
    assert TRUSTED.verify(other, "it", expires=False) == Statement.from_bytes(GOLDEN)


@pytest.mark.parametrize("missing", [None, Signed(b"", b"")])
def test_what_is_not_signed_is_refused(missing) -> None:
    with pytest.raises(SignatureError, match="it is refused: it is not signed"):
        TRUSTED.verify(missing, "it")


def test_a_statement_holds_from_its_creation_to_its_end_give_or_take_an_hour() -> None:
    now = int(time.time())
    statement = now_valid()
    for created, expires in ((now, now + 60), (now + 3000, now + 9999), (now - 9999, now - 3000)):
        held = replace(statement, created=created, expires=expires)
        assert TRUSTED.verify(signed(held), "it") == held
    old = signed(replace(statement, created=now - 9999, expires=now - 3700))
    with pytest.raises(SignatureError, match=r"expired on 20\d\d-.*clock it is 20\d\d-"):
        TRUSTED.verify(old, "it")
    assert TRUSTED.verify(old, "it", expires=False).version == 3
    # As on a board without a clock, which begins in 1970.
    early = signed(replace(statement, created=now + 3700))
    with pytest.raises(SignatureError, match="was signed on .*by this machine's clock.*: set it"):
        TRUSTED.verify(early, "it")


def test_either_of_two_keys_will_do_and_a_third_will_not(tmp_path) -> None:
    following, foreign = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    trusted = TrustedKeys.read(keys_in(tmp_path / "trusted", PUBLIC, pem(following)))
    for key in (KEY, following):
        assert trusted.verify(signed(now_valid(), key), "it").version == 3
    with pytest.raises(SignatureError, match="it is not signed by"):
        trusted.verify(signed(now_valid(), foreign), "it")


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        ([], "0 files, expected one public key or two"),
        ([PUBLIC] * 3, "3 files, expected one public key or two"),
        ([b"junk"], "0.pub: not a public key in PEM; fedhead keys new"),
        ([pem(ec.generate_private_key(ec.SECP384R1()))], "0.pub: not a key on the curve P-256"),
        ([pem(ed25519.Ed25519PrivateKey.generate())], "0.pub: not a key on the curve P-256"),
        (
            [KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())],
            "not a public key in PEM but a private one",
        ),
    ],
)
def test_keys_that_cannot_be_trusted_are_an_error_and_not_an_unsigned_deployment(
    tmp_path, contents, words
) -> None:
    folder = keys_in(tmp_path / "trusted", *contents)
    with pytest.raises(SignatureError, match=words):
        TrustedKeys.where_there_are(folder)


def test_a_trusted_key_that_others_can_replace_is_refused(tmp_path) -> None:
    folder = keys_in(tmp_path / "trusted", PUBLIC)
    (folder / "0.pub").chmod(0o666)
    with pytest.raises(SignatureError, match="mode 666 lets others replace a trusted key"):
        TrustedKeys.read(folder)


def test_without_a_folder_nothing_is_asked_for_unless_it_was_named(tmp_path) -> None:
    assert TrustedKeys.where_there_are(tmp_path / "trusted") is None
    with pytest.raises(SignatureError, match="no such folder"):
        TrustedKeys.read(tmp_path / "trusted")


def test_a_file_is_read_no_further_than_it_can_be_one(tmp_path) -> None:
    file = tmp_path / "signed"
    file.write_bytes(SIGNED.to_file() + b"x" * 10**6)
    with pytest.raises(SignatureError, match="signed: not a signed statement"):
        read_signed(file)
