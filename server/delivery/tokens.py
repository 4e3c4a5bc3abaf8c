"""A token for each device. The server keeps only its hash.

A token is ``DEVICE.SECRET``: the secret, 32 random bytes in URL-safe Base64, has no dot. It is no
password that could be guessed, so one SHA-256 is enough.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
from pathlib import Path

from common.delivery.versions import check_name
from common.errors import DeliveryError
from common.files import read_private, write_private

__all__ = ["device_of", "issue_token", "revoke_token"]

logger = logging.getLogger("fedhead.delivery")


def _path(folder: Path, device: str) -> Path:
    return folder / "tokens" / check_name(device, "device")


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def issue_token(folder: Path, device: str, out: Path) -> None:
    """Make a device's token, for its owner's eyes alone, and remember the hash.

    Args:
        folder: the delivery folder.
        device: a name of its own.
        out: the token file, to be carried to the device; never overwritten.

    Raises:
        DeliveryError: not a name, or the device has a token already.
        FileExistsError: there is such a file.
    """
    path = _path(folder, device)
    if path.exists():
        raise DeliveryError(f"{device} has a token already; revoke it to make another")
    token = f"{device}.{secrets.token_urlsafe(32)}"
    write_private(out, f"{token}\n".encode())
    try:
        write_private(path, _hash(token).encode())
    except OSError:
        out.unlink()
        raise


def revoke_token(folder: Path, device: str) -> None:
    """Let a device in no more, from its next call on.

    Raises:
        DeliveryError: it has no token.
    """
    try:
        _path(folder, device).unlink()
    except FileNotFoundError as exc:
        raise DeliveryError(f"{device} has no token") from exc


def device_of(folder: Path, token: str) -> str | None:
    """Whose token it is, or None; the log says why not."""
    device = token.rpartition(".")[0]
    try:
        known = read_private(_path(folder, device)).decode()
    except DeliveryError:
        logger.warning("refused: a token that names no device")
    except FileNotFoundError:
        logger.warning("refused: %s has no token, or it was revoked", device)
    except OSError as exc:
        logger.warning("refused: %s, for %s", exc, device)
    else:
        if hmac.compare_digest(known, _hash(token)):
            return device
        logger.warning("refused: a wrong token for %s", device)
    return None
