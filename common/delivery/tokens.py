"""A token for each device, of which the server keeps only a hash.

A token is ``DEVICE.SECRET``. The secret is 32 random bytes in URL-safe Base64, which has no dot. It
cannot be guessed like a password, so one SHA-256 is enough. A revoked token leaves a note in its
file.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import logging
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, cast

from common.delivery.versions import check_name
from common.errors import DamagedError, DeliveryError
from common.files import read_private, write_private
from common.readback import JsonFile

__all__ = ["TokenState", "device_of", "issue_token", "issue_tokens", "revoke_token", "token_path",
           "token_state", "token_states"]  # fmt: skip

logger = logging.getLogger("fedhead.delivery")

TokenState = Literal["valid", "revoked", "unfinished", "damaged"]

_TOKEN = JsonFile("hash of a device's token")


def token_path(folder: Path, device: str) -> Path:
    """The file with the hash of a device's token; each change replaces it.

    Raises:
        DeliveryError: the name is not safe.
    """
    return folder / "tokens" / check_name(device, "device")


def token_state(folder: Path, device: str) -> TokenState | None:
    """The state of a device's token; None: it never had one.

    Raises:
        DeliveryError: the name is not safe.
    """
    return _state(token_path(folder, device))


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def issue_token(folder: Path, device: str, out: Path) -> None:
    """Write a device's token to a file that only its owner can read, and keep the hash.

    If the process is killed meanwhile, the token may not work yet; another call with the same
    arguments completes it.

    Args:
        folder: the delivery folder.
        device: the device's name, which must be new.
        out: the token file, to be carried to the device; never overwritten.

    Raises:
        DeliveryError: the name is not safe, or the device has a token already.
        FileExistsError: the token file exists.
    """
    path = token_path(folder, device)
    state = _state(path)
    if state == "valid":
        raise DeliveryError(f"{device} has a token already; revoke it to make another")
    if state != "unfinished":
        if out.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(out))
        _TOKEN.write(path, {"state": "unfinished"})
    if not out.exists():
        write_private(out, f"{device}.{secrets.token_urlsafe(32)}\n".encode())
    new = path.with_name(f".{device}.new")
    new.unlink(missing_ok=True)
    sha256 = _hash(read_private(out).decode().strip())
    write_private(new, _TOKEN.pack({"state": "valid", "sha256": sha256}))
    new.replace(path)


def issue_tokens(folder: Path, devices: Iterable[str]) -> dict[str, str]:
    """Tokens of many new devices of a simulation, by name.

    No file holds a token, and no hash is flushed to the disk: a flush for each of ten thousand
    takes a minute.

    Raises:
        DeliveryError: a name is not safe.
        FileExistsError: a device has a token already.
    """
    tokens = {device: f"{device}.{secrets.token_urlsafe(32)}" for device in devices}
    (folder / "tokens").mkdir(parents=True, exist_ok=True)
    for device, token in tokens.items():
        content = _TOKEN.pack({"state": "valid", "sha256": _hash(token)})
        path = token_path(folder, device)
        path.touch(0o600, exist_ok=False)
        path.write_bytes(content)
    return tokens


def revoke_token(folder: Path, device: str) -> None:
    """Refuse a device from its next call on.

    Raises:
        DeliveryError: the device has no token.
    """
    path = token_path(folder, device)
    if _state(path) not in ("valid", "damaged"):
        raise DeliveryError(f"{device} has no token")
    _TOKEN.write(path, {"state": "revoked"})


def token_states(folder: Path) -> dict[str, TokenState]:
    """Devices that have or had a token, with its state."""
    found = {path.name: _state(path) for path in sorted((folder / "tokens").glob("[!.]*"))}
    return {device: state for device, state in found.items() if state is not None}


def _state(path: Path) -> TokenState | None:
    try:
        return cast("TokenState", _TOKEN.read(path)["state"])
    except FileNotFoundError:
        return None
    except DamagedError:
        return "damaged"


def device_of(folder: Path, token: str, *, quietly: bool = False) -> str | None:
    """The device of a token; None if it is not valid, and the log says why, unless ``quietly``."""
    level = logging.DEBUG if quietly else logging.WARNING
    device = token.rpartition(".")[0]
    try:
        path = token_path(folder, device)
        if (state := _state(path)) not in ("valid", None):
            logger.log(level, "refused: the token of %s is %s", device, state)
            return None
        read_private(path)  # raises if other users can read it
        known = str(_TOKEN.read(path)["sha256"])
    except DeliveryError:
        logger.log(level, "refused: a token that names no device")
    except FileNotFoundError:
        logger.log(level, "refused: %s has no token", device)
    except OSError as exc:
        logger.log(level, "refused: %s, for %s", exc, device)
    else:
        if hmac.compare_digest(known, _hash(token)):
            return device
        logger.log(level, "refused: a wrong token for %s", device)
    return None
