"""The operator's signing key: one file, kept off servers and devices.

It is ECDSA on P-256, PKCS8 in PEM, readable only by its owner, with or without a passphrase. Its
public half is beside it, in NAME.pub. See common/signing for what is signed.
"""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from common.errors import SignatureError
from common.files import read_private, write_atomic, write_private
from common.signing.statement import Signed, Statement
from common.signing.trust import key_id

__all__ = ["new_key", "new_passphrase", "public_file", "read_key", "sign"]

_VARIABLE = "FEDHEAD_PASSPHRASE"
_FILE_VARIABLE = "FEDHEAD_PASSPHRASE_FILE"


def public_file(path: Path) -> Path:
    """The file of a key's public half."""
    return path.with_name(f"{path.name}.pub")


def new_key(path: Path, passphrase: str) -> str:
    """Write a key and its public half; an existing key is never replaced.

    If only the public half is missing, because the process was killed, it is written.

    Args:
        path: the private key's file.
        passphrase: the passphrase; empty: none.

    Returns:
        The key's id.

    Raises:
        SignatureError: the key exists with its public half, or the public half exists alone.
    """
    public = public_file(path)
    if path.exists() and public.exists():
        raise SignatureError(f"{path} exists already: keys are never replaced")
    if not path.exists():
        if public.exists():
            raise SignatureError(f"{path} is missing, but {public} exists: move it away")
        key = generate_private_key(SECP256R1())
        secret = passphrase.encode()
        encryption = BestAvailableEncryption(secret) if secret else NoEncryption()
        write_private(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    key = read_key(path, passphrase)
    data = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    write_atomic(public, data)
    return key_id(key.public_key())


def new_passphrase() -> str:
    """A new key's passphrase, from the environment or asked for twice; empty: none.

    Raises:
        SignatureError: the two answers differ, or the file cannot be used.
    """
    given = _given_passphrase()
    if given is not None or not sys.stdin.isatty():
        return given or ""
    first = getpass.getpass("Passphrase of the new key (empty: none): ")
    if first and getpass.getpass("Again: ") != first:
        raise SignatureError("the passphrases differ: no key was written")
    return first


def read_key(path: Path, passphrase: str | None = None) -> EllipticCurvePrivateKey:
    """Read a private key.

    Args:
        path: the key's file.
        passphrase: the passphrase; None: if there is one, take it from the environment or ask.

    Raises:
        SignatureError: it is not such a key, or the passphrase is wrong.
        PermissionError: users other than its owner may read it.
    """
    data = read_private(path)
    try:
        if b"BEGIN ENCRYPTED PRIVATE KEY" not in data:
            key = load_pem_private_key(data, password=None)
        else:
            secret = _asked_passphrase(path) if passphrase is None else passphrase
            key = load_pem_private_key(data, password=secret.encode())
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise SignatureError(
            f"{path}: not a private key of fedhead keys new, or the wrong passphrase"
        ) from exc
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP256R1):
        raise SignatureError(f"{path}: not a key on the curve P-256")
    return key


def sign(key: EllipticCurvePrivateKey, statement: Statement) -> Signed:
    """The statement with its signature."""
    data = statement.to_bytes()
    return Signed(data, key.sign(data, ECDSA(SHA256())))


def _asked_passphrase(path: Path) -> str:
    given = _given_passphrase()
    if given is not None:
        return given
    if not sys.stdin.isatty():
        raise SignatureError(
            f"{path} has a passphrase: set {_FILE_VARIABLE} to a file that holds it, or "
            f"{_VARIABLE} to the passphrase"
        )
    return getpass.getpass(f"Passphrase of {path}: ")


def _given_passphrase() -> str | None:
    # Removed from the environment, because processes that are started later inherit it.
    text = os.environ.pop(_VARIABLE, None)
    file = os.environ.pop(_FILE_VARIABLE, None)
    if text is not None:
        return text
    if file is None:
        return None
    return read_private(Path(file)).decode().removesuffix("\n")
