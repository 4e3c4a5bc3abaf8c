r"""What an operator vouches for: one file, byte by byte, in ten lines that any language can write.

::

    fedhead artifact v1
    kind model                  or backbone
    name model.pt
    version 3
    size 2551234                of the file, in bytes
    sha256 9f86...              of the file
    card 2c26...                SHA-256 of its card as it is delivered; of nothing for a backbone
    fingerprint 486e...         of the backbone
    created 1795873446          seconds since 1970, UTC
    expires 1827409446

Each line ends with one ``\n``, the values are separated from their names by one space, numbers have
no leading zeros, digests are 64 lower-case hexadecimal digits: no other bytes are a statement. The
first two lines keep a signature from meaning anything else.

The signature is ECDSA on P-256 with SHA-256 over exactly these bytes, in DER. There is no other
algorithm. Such a signature can be changed into another valid one by anybody, so it identifies
nothing.
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
"""What can name an artifact, or a device."""

MAX_SIGNED_BYTES = 1024
"""What statement and signature take at most, together or in a file: they take half of it."""

# Eleven digits of seconds reach to the year 5138.
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
    """A moment as a person reads it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


@dataclass(frozen=True)
class Statement:
    """What is signed; see the top of the file."""

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
        """What it is about, without the version."""
        return self.name if self.kind == "model" else f"backbone {self.name}"

    def to_bytes(self) -> bytes:
        """Exactly what is signed.

        Raises:
            SignatureError: a value that no statement can have.
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
            SignatureError: not a statement, to the byte.
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
    """A statement and its signature, not yet checked: bytes from a disk or over the wire.

    Attributes:
        statement: its exact bytes.
        signature: ECDSA in DER.
    """

    statement: bytes
    signature: bytes

    def to_file(self) -> bytes:
        """As it lies on a disk: the statement's lines, and one more with the signature."""
        return self.statement + _SIGNATURE + base64.b64encode(self.signature) + b"\n"

    @classmethod
    def from_file(cls, data: bytes) -> Self:
        """The reverse of ``to_file``.

        Raises:
            SignatureError: no such file, to the byte.
        """
        statement, _, last = data.rpartition(_SIGNATURE)
        try:
            signed = cls(statement, base64.b64decode(last.removesuffix(b"\n"), validate=True))
        except binascii.Error:
            signed = cls(statement, b"")
        # Base64 has several forms for the same bytes; one of them is enough.
        if len(data) > MAX_SIGNED_BYTES or not statement or signed.to_file() != data:
            raise SignatureError("not a signed statement of fedhead")
        return signed


@own_check("signed statement")
def read_signed(path: Path) -> Signed:
    """A file of a signed statement.

    Raises:
        SignatureError: it is none; names the file.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(MAX_SIGNED_BYTES + 1)
    try:
        return Signed.from_file(data)
    except SignatureError as exc:
        raise SignatureError(f"{path}: {exc}") from exc
