"""What keeps a device from its server, in a line for its owner."""

from __future__ import annotations

import socket
import ssl
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

__all__ = ["obstacle"]

_SECONDS = 10.0
_LONGEST_SAID = 300


def obstacle(server: str, authority: Path, refused: str) -> str:
    """Why a device is not let in, as far as Flower and a handshake of its own tell.

    Args:
        server: host:port.
        authority: its certificate.
        refused: what Flower said last of the server's refusal; empty: it did not come so far.
    """
    address = urlsplit(f"//{server}")
    context = ssl.create_default_context(cafile=authority)
    try:
        with (
            socket.create_connection((address.hostname, address.port), _SECONDS) as link,
            context.wrap_socket(link, server_hostname=address.hostname),
        ):
            return _refusal(server, " ".join(refused.split()))
    except ssl.SSLCertVerificationError as exc:
        return f"the certificate of {server} is refused: {exc.verify_message}"
    except OSError as exc:
        return f"{server} cannot be reached: {exc}"


def _refusal(server: str, said: str) -> str:
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    if "Failed to activate SuperNode" in said:
        # Flower tells no more.
        return (
            f"{server} lets no such device in now: is this device's key registered? If it is, the "
            "server takes it to be connected still: for a minute after power or network was lost, "
            "or because another process has its key"
        )
    if not said or "401 Unauthorized" in said:
        # Then Flower ends without a word, or with this one.
        return (
            f"{server} can be reached and does not let this device in: its key is not registered, "
            f"or was revoked, or the clock is wrong; it has {now}"
        )
    return f"{server} can be reached, and Flower says: {said[-_LONGEST_SAID:]}"
