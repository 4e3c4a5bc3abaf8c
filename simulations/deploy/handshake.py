"""The reason why a device cannot reach its server, in one line for its owner."""

from __future__ import annotations

import socket
import ssl
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from common.words import one_line

__all__ = ["obstacle"]

_SECONDS = 10.0


def obstacle(server: str, authority: Path, refused: str) -> str:
    """The reason why a device is not let in, found from the refusal and a TLS handshake.

    Args:
        server: host:port.
        authority: the authority's certificate.
        refused: status and text of the server's last refusal; empty: there was none.
    """
    address = urlsplit(f"//{server}")
    context = ssl.create_default_context(cafile=authority)
    try:
        with (
            socket.create_connection((address.hostname, address.port), _SECONDS) as link,
            context.wrap_socket(link, server_hostname=address.hostname),
        ):
            return _refusal(server, one_line(refused))
    except ssl.SSLCertVerificationError as exc:
        return f"the certificate of {server} is refused: {exc.verify_message}"
    except OSError as exc:
        return f"{server} cannot be reached: {exc}"


def _refusal(server: str, said: str) -> str:
    if said.startswith("401"):
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        return (
            f"{server} does not know this device: is its key registered and not revoked, and is "
            f"the clock right? It says {now}"
        )
    if "Failed to activate SuperNode" in said:
        return (
            f"{server} still counts this device as connected: for a minute after it lost power or "
            "network, or because another process uses its key"
        )
    if said:
        return f"{server} says: {said}"
    return f"{server} can be reached"
