"""What keeps a device from its server, in a line for its owner."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from urllib.parse import urlsplit

__all__ = ["obstacle"]

_SECONDS = 10.0


def obstacle(server: str, authority: Path) -> str:
    """Why a device is not let in, as far as a handshake of its own tells."""
    address = urlsplit(f"//{server}")
    context = ssl.create_default_context(cafile=authority)
    try:
        with (
            socket.create_connection((address.hostname, address.port), _SECONDS) as link,
            context.wrap_socket(link, server_hostname=address.hostname),
        ):
            return f"{server} is there; is this device's key registered, and the clock right?"
    except ssl.SSLCertVerificationError as exc:
        return f"the certificate of {server} is refused: {exc.verify_message}"
    except OSError as exc:
        return f"{server} cannot be reached: {exc}"
