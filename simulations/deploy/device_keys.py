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
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
    load_ssh_public_key,
)

from common.errors import RunError
from common.files import write_atomic
from common.readback import own_check
from server.round.roster import client_file

__all__ = [
    "admitted_keys",
    "comparable",
    "key_id",
    "put_out",
    "read_key",
    "revoked_keys",
    "revoked_names",
]


def comparable(key: bytes) -> bytes:
    """A device's public key in the one form that keys are compared in: PEM, as Flower has them.

    Args:
        key: in OpenSSH's format, as files have it.

    Raises:
        ValueError, UnsupportedAlgorithm: it is no such key.
    """
    loaded = load_ssh_public_key(key)
    if not isinstance(loaded, EllipticCurvePublicKey):
        raise ValueError("not a key on an elliptic curve")  # noqa: TRY004 - of the file
    return loaded.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@own_check("public key of a device")
def read_key(path: Path) -> bytes:
    """The key in a file, as :func:`comparable` has it.

    Raises:
        RunError: the file holds no such key.
    """
    try:
        return comparable(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as exc:
        raise RunError(f"{path}: cannot be registered: {exc}") from exc


def key_id(key: bytes) -> str:
    """The short id by which people, and they alone, compare keys."""
    return hashlib.sha256(key).hexdigest()[:8]


def admitted_keys(server: Path) -> dict[str, bytes]:
    """The keys that are let in, by the device's name.

    Raises:
        RunError: a key cannot be read.
    """
    revoked = revoked_keys(server)
    files = sorted((server / "devices").glob("[!.]*.pub"))
    keys = {path.stem: read_key(path) for path in files}
    return {name: key for name, key in keys.items() if key not in revoked}


def revoked_keys(server: Path) -> set[bytes]:
    """The keys that were revoked.

    Raises:
        RunError: a key cannot be read.
    """
    return {read_key(path) for path in (server / "revoked").glob("[!.]*.pub")}


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
        key: as :func:`comparable` has it.
    """
    name = re.sub(r"[^A-Za-z0-9_-]", "_", name)
    kept = server / "revoked" / f"{name}.{key_id(key)}.pub"
    if not kept.exists():
        public = load_pem_public_key(key).public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        write_atomic(kept, public + b"\n")
    file = server / "devices" / f"{name}.pub"
    # The name may have a new key by now.
    if not file.exists() or read_key(file) == key:
        client_file(server, name).unlink(missing_ok=True)
        file.unlink(missing_ok=True)
