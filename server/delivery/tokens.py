"""A token for each device. The server keeps only its hash.

A token is ``DEVICE.SECRET``: the secret, 32 random bytes in URL-safe Base64, has no dot. It is no
password that could be guessed, so one SHA-256 is enough. A token that was revoked leaves a word to
say so.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import logging
import os
import secrets
from pathlib import Path
from typing import Literal, cast

from common.delivery.versions import check_name
from common.errors import DamagedError, DeliveryError
from common.files import read_private, write_private
from common.readback import JsonFile

__all__ = ["TokenState", "device_of", "issue_token", "revoke_token", "token_states"]

logger = logging.getLogger("fedhead.delivery")

TokenState = Literal["valid", "revoked", "unfinished", "damaged"]

_TOKEN = JsonFile("hash of a device's token")


def _path(folder: Path, device: str) -> Path:
    return folder / "tokens" / check_name(device, "device")


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def issue_token(folder: Path, device: str, out: Path) -> None:
    """Make a device's token, for its owner's eyes alone, and remember the hash.

    A process that is killed meanwhile leaves a token that does not work yet; the next call with
    the same arguments completes it.

    Args:
        folder: the delivery folder.
        device: a name of its own.
        out: the token file, to be carried to the device; never overwritten.

    Raises:
        DeliveryError: not a name, or the device has a token already.
        FileExistsError: there is such a file.
    """
    path = _path(folder, device)
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


def revoke_token(folder: Path, device: str) -> None:
    """Let a device in no more, from its next call on.

    Raises:
        DeliveryError: it has no token.
    """
    path = _path(folder, device)
    if _state(path) not in ("valid", "damaged"):
        raise DeliveryError(f"{device} has no token")
    _TOKEN.write(path, {"state": "revoked"})


def token_states(folder: Path) -> dict[str, TokenState]:
    """Who has a token, or had one."""
    found = {path.name: _state(path) for path in sorted((folder / "tokens").glob("[!.]*"))}
    return {device: state for device, state in found.items() if state is not None}


def _state(path: Path) -> TokenState | None:
    try:
        return cast("TokenState", _TOKEN.read(path)["state"])
    except FileNotFoundError:
        return None
    except DamagedError:
        return "damaged"


def device_of(folder: Path, token: str) -> str | None:
    """Whose token it is, or None; the log says why not."""
    device = token.rpartition(".")[0]
    try:
        path = _path(folder, device)
        if (state := _state(path)) not in ("valid", None):
            logger.warning("refused: the token of %s is %s", device, state)
            return None
        read_private(path)  # others must not read it
        known = str(_TOKEN.read(path)["sha256"])
    except DeliveryError:
        logger.warning("refused: a token that names no device")
    except FileNotFoundError:
        logger.warning("refused: %s has no token", device)
    except OSError as exc:
        logger.warning("refused: %s, for %s", exc, device)
    else:
        if hmac.compare_digest(known, _hash(token)):
            return device
        logger.warning("refused: a wrong token for %s", device)
    return None
