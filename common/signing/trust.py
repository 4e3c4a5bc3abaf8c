"""The trusted public keys, and the checks that a signed statement is valid now."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

from common.errors import SignatureError
from common.readback import own_check
from common.signing.statement import MAX_SIGNED_BYTES, Signed, Statement, utc

__all__ = ["CLOCK_SKEW_SECONDS", "MAX_KEYS", "TrustedKeys", "key_id", "read_public_key"]

MAX_KEYS = 2
"""The current key and the next one."""

CLOCK_SKEW_SECONDS = 3600
"""Largest difference between the clocks of the signer and the checker."""

# Such a key's PEM has 178 bytes; there may be text around it.
_MAX_KEY_BYTES = 8192


def key_id(key: EllipticCurvePublicKey) -> str:
    """A key's short name: the beginning of the SHA-256 of its SPKI in DER."""
    return hashlib.sha256(
        key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    ).hexdigest()[:16]


@own_check("public signing key")
def read_public_key(path: Path) -> EllipticCurvePublicKey:
    """Read the public half of a signing key.

    Raises:
        SignatureError: it is not such a key, or users other than its owner may write the file.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode & 0o777
        data = file.read(_MAX_KEY_BYTES)
    if mode & 0o022:
        raise SignatureError(f"{path}: mode {mode:o} lets others replace a trusted key; chmod 644")
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as exc:
        private = " but a private one" if b"PRIVATE KEY" in data else ""
        raise SignatureError(
            f"{path}: not a public key in PEM{private}; fedhead keys new writes one, NAME.pub"
        ) from exc
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        raise SignatureError(f"{path}: not a key on the curve P-256")
    return key


@dataclass(frozen=True)
class TrustedKeys:
    """One or two public keys, by id."""

    keys: Mapping[str, EllipticCurvePublicKey]

    @classmethod
    def read(cls, folder: Path) -> TrustedKeys:
        """The keys in a folder.

        Raises:
            SignatureError: the folder is missing, or does not hold one or two keys and nothing
                else.
        """
        if not folder.is_dir():
            raise SignatureError(f"{folder}: no such folder, expected trusted public keys in it")
        files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        # A folder that has lost its keys must not mean that everything is accepted.
        if not 1 <= len(files) <= MAX_KEYS:
            raise SignatureError(
                f"{folder}: {len(files)} files, expected one public key or two: the current one "
                "and the next"
            )
        keys = [read_public_key(path) for path in files]
        return cls({key_id(key): key for key in keys})

    @classmethod
    def where_there_are(cls, folder: Path) -> TrustedKeys | None:
        """The same; None if there is no such folder, so that nothing need be signed."""
        return cls.read(folder) if folder.exists() else None

    def __str__(self) -> str:
        return " or ".join(self.keys)

    def verify(self, signed: Signed | None, what: str, *, expires: bool = True) -> Statement:
        """The statement, if one of the keys has signed it.

        Args:
            signed: the received statement and signature; None: there was none.
            what: words for the signed thing, for the error.
            expires: whether an expired statement is refused; False for artifacts already in use.

        Raises:
            SignatureError: it is unsigned, signed by another key, changed, expired, or from the
                future.
        """
        if signed is None or signed == Signed(b"", b""):
            raise SignatureError(
                f"{what} is refused: it is not signed, and a signature of {self} is needed"
            )
        if not any(_holds(key, signed) for key in self.keys.values()):
            raise SignatureError(
                f"{what} is refused: it is not signed by {self}, or it was changed since"
            )
        try:
            statement = Statement.from_bytes(signed.statement)
        except SignatureError as exc:
            raise SignatureError(f"{what} is refused: {exc}") from exc
        if expires:
            _check_time(statement, what, int(time.time()))
        return statement


def _holds(key: EllipticCurvePublicKey, signed: Signed) -> bool:
    if len(signed.statement) + len(signed.signature) > MAX_SIGNED_BYTES:
        return False
    try:
        key.verify(signed.signature, signed.statement, ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True


def _check_time(statement: Statement, what: str, now: int) -> None:
    clock = f"by this machine's clock it is {utc(now)}"
    if now < statement.created - CLOCK_SKEW_SECONDS:
        raise SignatureError(
            f"{what} is refused: it was signed on {utc(statement.created)}, but {clock}: set it"
        )
    if now > statement.expires + CLOCK_SKEW_SECONDS:
        raise SignatureError(
            f"{what} is refused: its signature expired on {utc(statement.expires)}, and "
            f"{clock}; sign it again, unless the clock is wrong"
        )
