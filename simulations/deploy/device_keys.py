"""Which devices' keys the server lets in, and which it never lets in again.

::

    server/devices/NAME.pub         is let in
    server/revoked/NAME.KEY.pub     was revoked; KEY is the key's short id

A name may come back with a new key, a revoked key never, under whatever name.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
    load_ssh_public_key,
)

from common.errors import RunError
from common.files import write_atomic

__all__ = ["admitted_keys", "key_id", "put_out", "read_key", "revoked_keys", "revoked_names"]


def read_key(path: Path) -> bytes:
    """A device's public key, in the one form that keys are compared in.

    Raises:
        RunError: the file holds no such key.
    """
    try:
        return _plain(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as exc:
        raise RunError(f"{path}: cannot be registered: {exc}") from exc


def _plain(key: bytes) -> bytes:
    """OpenSSH's form without a comment; Flower keeps keys as PEM."""
    load = load_pem_public_key if key.startswith(b"-----") else load_ssh_public_key
    return load(key).public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)


def key_id(key: bytes) -> str:
    """The short id by which people compare keys."""
    return hashlib.sha256(_plain(key)).hexdigest()[:8]


def admitted_keys(server: Path) -> dict[str, Path]:
    """The files of the keys that are let in, by the device's name.

    Raises:
        RunError: a key cannot be read.
    """
    revoked = revoked_keys(server)
    found = {path.stem: path for path in sorted((server / "devices").glob("[!.]*.pub"))}
    return {name: path for name, path in found.items() if read_key(path) not in revoked}


def revoked_keys(server: Path) -> dict[bytes, Path]:
    """The keys that were revoked, and the file of each.

    Raises:
        RunError: a key cannot be read.
    """
    return {read_key(path): path for path in sorted((server / "revoked").glob("[!.]*.pub"))}


def revoked_names(server: Path) -> dict[str, list[Path]]:
    """The files of the keys that were revoked, by the name of the device."""
    found: dict[str, list[Path]] = {}
    for path in sorted((server / "revoked").glob("[!.]*.pub")):
        found.setdefault(path.name.split(".")[0], []).append(path)
    return found


def put_out(server: Path, name: str, key: bytes) -> None:
    """Never let a key in again; a second time changes nothing.

    Args:
        server: the server's folder.
        name: of the device, as its key was registered; Flower takes any words.
        key: in OpenSSH's form or as PEM.
    """
    name = re.sub(r"[^A-Za-z0-9_-]", "_", name)
    kept = server / "revoked" / f"{name}.{key_id(key)}.pub"
    if not kept.exists():
        write_atomic(kept, _plain(key) + b"\n")
    file = server / "devices" / f"{name}.pub"
    # The name may have a new key by now.
    if not file.exists() or read_key(file) == _plain(key):
        file.with_suffix(".client").unlink(missing_ok=True)
        file.unlink(missing_ok=True)
