"""The reason why a server cannot listen at an address; gRPC does not give one."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

__all__ = ["listener", "obstacle"]


def listener(host: str, port: int, *, backlog: int | None = None) -> socket.socket:
    """A TCP socket that listens.

    Raises:
        OSError: it cannot listen. ``strerror`` is the cause alone, also for an unknown host name.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=backlog)
    except socket.gaierror:
        raise
    except OSError as exc:  # Python's text repeats the address
        raise OSError(exc.errno, os.strerror(exc.errno or 0)) from exc


def obstacle(address: str) -> str:
    """The reason why a server cannot listen at host:port."""
    place = urlsplit(f"//{address}")
    try:
        listener(place.hostname or "", place.port or 0).close()
    except OSError as exc:
        return exc.strerror or str(exc)
    return "for an unknown reason"
