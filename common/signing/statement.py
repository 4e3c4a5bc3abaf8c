r"""The statement that an operator signs: ten lines about one file, easy to write in any language.

::

    fedhead artifact v1
    kind model                  or backbone
    name model.pt
    version 3
    size 2551234                of the file, in bytes
    sha256 9f86...              of the file
    card 2c26...                SHA-256 of its card as delivered; of no bytes for a backbone
    fingerprint 486e...         of the backbone
    created 1795873446          seconds since 1970, UTC
    expires 1827409446

Each line ends with one ``\n``. One space separates a value from its name. Numbers have no leading
zeros. Digests are 64 lower-case hexadecimal digits. No other bytes are a statement. Because of the
first two lines, a signature cannot be taken for one of something else.

The signature is ECDSA on P-256 with SHA-256 over exactly these bytes, in DER. There is no other
algorithm. Anybody can change such a signature into another valid one, so it must not serve as an
identifier.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self, cast

from common.errors import SignatureError
from common.readback import own_check

__all__ = ["MAX_SIGNED_BYTES", "NAME_PATTERN", "Kind", "Signed", "Statement", "read_signed", "utc"]

Kind = Literal["model", "backbone"]

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
"""Pattern of an artifact's or a device's name."""

MAX_SIGNED_BYTES = 1024
"""Largest size of statement and signature, together or in a file; they need half of it."""

# Eleven digits of seconds last until the year 5138.
_STATEMENT = re.compile(
    (
        r"fedhead artifact v1\n"
        r"kind (?P<kind>model|backbone)\n"
        rf"name (?P<name>{NAME_PATTERN})\n"
        r"version (?P<version>[1-9][0-9]{0,17})\n"
        r"size (?P<size>0|[1-9][0-9]{0,17})\n"
        r"sha256 (?P<sha256>[0-9a-f]{64})\n"
        r"card (?P<card>[0-9a-f]{64})\n"
        r"fingerprint (?P<fingerprint>[0-9a-f]{64})\n"
        r"created (?P<created>[1-9][0-9]{0,10})\n"
        r"expires (?P<expires>[1-9][0-9]{0,10})\n"
    ).encode()
)
_SIGNATURE = b"signature "


def utc(seconds: int) -> str:
    """A time as text for people."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


@dataclass(frozen=True)
class Statement:
    """The statement; see the top of the file."""

    kind: Kind
    name: str
    version: int
    size: int
    sha256: str
    card: str
    fingerprint: str
    created: int
    expires: int

    def __str__(self) -> str:
        return f"{self.title} version {self.version}"

    @property
    def title(self) -> str:
        """Kind and name, without the version."""
        return self.name if self.kind == "model" else f"backbone {self.name}"

    def to_bytes(self) -> bytes:
        """Exactly the bytes that are signed.

        Raises:
            SignatureError: a statement cannot have such a value.
        """
        lines = [f"{name} {value}\n" for name, value in vars(self).items()]
        data = "".join(["fedhead artifact v1\n", *lines]).encode()
        if not _STATEMENT.fullmatch(data):
            raise SignatureError(f"{self} cannot be signed: no statement can hold {vars(self)}")
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> Statement:
        """The reverse of ``to_bytes``.

        Raises:
            SignatureError: the bytes are not exactly a statement.
        """
        match = _STATEMENT.fullmatch(data) if len(data) <= MAX_SIGNED_BYTES else None
        if match is None:
            raise SignatureError("not a statement of fedhead artifact v1")
        text = {name: value.decode() for name, value in match.groupdict().items()}
        numbers = {name: int(text[name]) for name in ("version", "size", "created", "expires")}
        return cls(
            kind=cast("Kind", text["kind"]),
            name=text["name"],
            sha256=text["sha256"],
            card=text["card"],
            fingerprint=text["fingerprint"],
            **numbers,
        )


@dataclass(frozen=True)
class Signed:
    """A statement and its signature, not yet checked: bytes from a disk or a message.

    Attributes:
        statement: the statement's exact bytes.
        signature: ECDSA in DER.
    """

    statement: bytes
    signature: bytes

    def to_file(self) -> bytes:
        """The content of its file: the statement's lines, and one more with the signature."""
        return self.statement + _SIGNATURE + base64.b64encode(self.signature) + b"\n"

    @classmethod
    def from_file(cls, data: bytes) -> Self:
        """The reverse of ``to_file``.

        Raises:
            SignatureError: the bytes are not exactly such a file.
        """
        statement, _, last = data.rpartition(_SIGNATURE)
        try:
            signed = cls(statement, base64.b64decode(last.removesuffix(b"\n"), validate=True))
        except binascii.Error:
            signed = cls(statement, b"")
        # Base64 has several forms for the same bytes; only one of them is accepted.
        if len(data) > MAX_SIGNED_BYTES or not statement or signed.to_file() != data:
            raise SignatureError("not a signed statement of fedhead")
        return signed


@own_check("signed statement")
def read_signed(path: Path) -> Signed:
    """Read the file of a signed statement.

    Raises:
        SignatureError: it is not one; names the file.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(MAX_SIGNED_BYTES + 1)
    try:
        return Signed.from_file(data)
    except SignatureError as exc:
        raise SignatureError(f"{path}: {exc}") from exc
