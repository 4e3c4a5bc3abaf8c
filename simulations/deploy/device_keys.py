"""The devices' keys that the server lets in, and those that it never lets in again.

::

    server/devices/NAME.pub         a key that is let in
    server/revoked/NAME.KEY.pub     a revoked key; KEY is the key's short id
    server/revoked/NAME.KEY.client  the client id that Flower had given to it

A name may come back with a new key. A revoked key never comes back, under any name.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
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
    "last_revoked",
    "put_out",
    "read_key",
    "revoked_keys",
    "revoked_names",
]


def comparable(key: bytes) -> bytes:
    """A device's public key in the form in which keys are compared: PEM, as in Flower.

    Args:
        key: in OpenSSH's format, as in files.

    Raises:
        ValueError, UnsupportedAlgorithm: it is not such a key.
    """
    loaded = load_ssh_public_key(key)
    if not isinstance(loaded, EllipticCurvePublicKey):
        raise ValueError("not a key on an elliptic curve")  # noqa: TRY004 - of the file
    return loaded.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@own_check("public key of a device")
def read_key(path: Path) -> bytes:
    """The key in a file, in the form of :func:`comparable`.

    Raises:
        RunError: the file is not such a key.
    """
    try:
        return comparable(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as exc:
        raise RunError(f"{path}: cannot be registered: {exc}") from exc


def key_id(key: bytes) -> str:
    """A short id for people to compare keys; programs compare whole keys."""
    return hashlib.sha256(key).hexdigest()[:8]


def admitted_keys(server: Path) -> dict[str, bytes]:
    """The keys that are let in, by device name.

    Raises:
        RunError: a key cannot be read.
    """
    revoked = revoked_keys(server)
    files = sorted((server / "devices").glob("[!.]*.pub"))
    keys = {path.stem: read_key(path) for path in files}
    return {name: key for name, key in keys.items() if key not in revoked}


def revoked_keys(server: Path) -> set[bytes]:
    """The revoked keys.

    Raises:
        RunError: a key cannot be read.
    """
    return {read_key(path) for path in (server / "revoked").glob("[!.]*.pub")}


def revoked_names(server: Path) -> dict[str, list[Path]]:
    """The files of revoked keys, by device name."""
    found: dict[str, list[Path]] = {}
    for path in sorted((server / "revoked").glob("[!.]*.pub")):
        found.setdefault(path.name.split(".")[0], []).append(path)
    return found


def last_revoked(server: Path) -> dict[str, Path]:
    """The file of the key that was revoked last, by device name."""
    return {
        name: max(paths, key=lambda path: path.stat().st_mtime_ns)
        for name, paths in revoked_names(server).items()
    }


def put_out(server: Path, name: str, key: bytes) -> None:
    """Revoke a key for ever. A repeated call changes nothing.

    Args:
        server: the server's folder.
        name: the name under which the key was registered; Flower accepts any text.
        key: in the form of :func:`comparable`.
    """
    name = re.sub(r"[^A-Za-z0-9_-]", "_", name)
    kept = server / "revoked" / f"{name}.{key_id(key)}.pub"
    if not kept.exists():
        public = load_pem_public_key(key).public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        write_atomic(kept, public + b"\n")
    file = server / "devices" / f"{name}.pub"
    # The name may have a new key by now.
    if not file.exists() or read_key(file) == key:
        with suppress(FileNotFoundError):
            client_file(server, name).replace(kept.with_suffix(".client"))
        file.unlink(missing_ok=True)
