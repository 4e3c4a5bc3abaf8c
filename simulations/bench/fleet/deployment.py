"""The temporary deployment of a simulated fleet: a server's folder with tokens for all phones."""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from client.gateway import place as gateway
from client.gateway.figures import read_fleet
from common.delivery.tokens import issue_tokens
from common.files import write_atomic
from common.phones import GATEWAY
from server.round.roster import CLIENT, client_file
from simulations.deploy.authority import ensure_authority, sign_server
from simulations.deploy.certificates import write_device_keys
from simulations.deploy.settings import delivery_of

__all__ = ["NODE", "Place", "make_place", "phone_names"]

NODE = 1
"""Flower's id of the gateway's node in this process."""

_HOST = "localhost"
_DAYS = 1
_MORE_CALLS = 1000  # beside one of each phone: what is left of broken connections


@dataclass(frozen=True)
class Place:
    """A simulated fleet's files.

    Attributes:
        folder: of the deployment, temporary.
        port: at which the gateway listens.
        tokens: the phones', in their order.
    """

    folder: Path
    port: int
    tokens: tuple[str, ...]

    @property
    def server(self) -> Path:
        """The server's folder."""
        return self.folder / "server"

    @property
    def socket(self) -> Path:
        """The gateway's, for the server's messages."""
        return self.server / "gateway" / "socket"

    @property
    def address(self) -> str:
        """HOST:PORT for phones."""
        return f"{_HOST}:{self.port}"

    def service_command(self) -> list[str]:
        """The command that starts the gateway's service."""
        module = ["-P", "-m", "client.gateway.service"]
        return [sys.executable, *module, str(self.server), str(self.socket)]

    def counted(self) -> dict[str, Any]:
        """The gateway's counters; empty before it has written any."""
        try:
            return read_fleet(gateway.Place(self.server).fleet)
        except FileNotFoundError:
            return {}


def phone_names(count: int) -> list[str]:
    """Names of phones.

    >>> phone_names(2)
    ['phone-00000', 'phone-00001']
    """
    return [f"phone-{number:05}" for number in range(count)]


def make_place(
    folder: Path,
    names: Sequence[str],
    backbones: Mapping[str, bytes],
    settings: Mapping[str, object],
) -> Place:
    """Write the server's folder of a deployment whose gateway is registered.

    Args:
        folder: an existing, empty folder.
        names: the phones'.
        backbones: payloads by fingerprint, for phones that run torch.
        settings: lines of server.toml, in place of those for a fleet on this machine.
    """
    ensure_authority(folder)
    server = folder / "server"
    server.mkdir(mode=0o700)
    sign_server(folder, [_HOST, "127.0.0.1"], _DAYS)
    write_atomic(server / "ca.crt", (folder / "authority" / "ca.crt").read_bytes())
    port = _free_port()
    own = {
        "host": "127.0.0.1",
        "gateway-port": port,
        "max-phone-calls": len(names) + _MORE_CALLS,
    }
    write_atomic(server / "server.toml", tomli_w.dumps({**own, **settings}).encode())
    gateway = server / "gateway"
    gateway.mkdir(mode=0o700)
    (server / "devices").mkdir()
    write_device_keys(gateway / f"{GATEWAY}.key", server / "devices" / f"{GATEWAY}.pub")
    CLIENT.write(client_file(server, GATEWAY), {"client": NODE})
    for fingerprint, payload in backbones.items():
        write_atomic(gateway / "backbones" / fingerprint / "backbone.bin", payload)
    tokens = issue_tokens(delivery_of(server), names)
    return Place(folder, port, tuple(tokens.values()))


def _free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        return int(probe.getsockname()[1])
