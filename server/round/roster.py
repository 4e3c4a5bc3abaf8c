"""The devices and phones of a deployment: the name and the client id of each.

``fedhead deploy`` writes a device's public key into the server's folder. Its registration adds the
client id that Flower gave to this key. So the key that a node has proved to have decides its
identity, never what the node says. One key is the gateway's, whose node speaks for all phones.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import DamagedError, RunError
from common.identity import client_of_node
from common.phones import GATEWAY
from common.readback import JsonFile
from server.round.phones import Phones

__all__ = ["CLIENT", "Device", "Roster", "client_file", "read_client", "read_roster"]

logger = logging.getLogger("fedhead")

CLIENT = JsonFile("client id of a device")

_NONE: Mapping[int, str] = {}


@dataclass(frozen=True)
class Device:
    """A registered device.

    Attributes:
        name: the name that its owner gave it.
        client: the device's client id.
    """

    name: str
    client: int


def client_file(server: Path, name: str) -> Path:
    """The file with a device's client id, beside its public key."""
    return server / "devices" / f"{name}.client"


def read_client(file: Path) -> int | None:
    """The client id in a file; None if there is no such file or it is damaged, with a log line."""
    try:
        return int(CLIENT.read(file)["client"])
    except FileNotFoundError:
        return None
    except (OSError, DamagedError) as exc:
        logger.warning("%s is left out: %s", file.stem, exc)
        return None


def read_roster(server: Path) -> dict[str, Device]:
    """The registered devices of a server's folder, by name. A key alone is not registered yet.

    Raises:
        RunError: there is no such folder.
    """
    folder = server / "devices"
    if not folder.is_dir():
        raise RunError(f"{folder} is missing: fedhead deploy writes it")
    found = {}
    for key in sorted(folder.glob("[!.]*.pub")):
        client = read_client(client_file(server, key.stem))
        if client is not None:
            found[key.stem] = Device(key.stem, client)
    return found


class Roster:
    """A run's view of the registered devices and phones, which may change during the run.

    Without a registered gateway there are no phones: a token is then for fetching models alone.

    Args:
        server: the deployment's server folder.

    Attributes:
        names: names of the registered devices and phones, sorted; the gateway is neither.
        phones: names of the phones, by client id.

    Raises:
        RunError: there is no such folder.
    """

    def __init__(self, server: Path) -> None:
        self._server = server
        self._known: dict[int, str] = {}
        self._devices: Mapping[int, Device] = {}
        self._gateway: int | None = None
        self._tokens, self._keys, self._changed = Phones(server), set[str](), 0
        self.names: Sequence[str] = ()
        self.phones: Mapping[int, str] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the folders again if they have changed.

        Raises:
            RunError: the folder is missing.
        """
        try:
            changed = (self._server / "devices").stat().st_mtime_ns
        except OSError:
            changed = 0
        is_new = not changed or changed != self._changed
        if is_new:
            found = read_roster(self._server)
            gateway = found.pop(GATEWAY, None)
            self._gateway = gateway.client if gateway else None
            self._devices = {device.client: device for device in found.values()}
            # A key that is not registered yet makes a device all the same.
            self._keys = {path.stem for path in (self._server / "devices").glob("[!.]*.pub")}
            self._changed = changed
        before, self.phones = self.phones, self._read_phones()
        if is_new or self.phones is not before:
            own = {client: device.name for client, device in self._devices.items()}
            # The name of what was revoked is kept for messages.
            self._known |= {**self.phones, **own}
            if self._gateway is not None:
                self._known[self._gateway] = GATEWAY
            self.names = sorted([*own.values(), *self.phones.values()])

    def _read_phones(self) -> Mapping[int, str]:
        if self._gateway is None:
            return _NONE
        self._tokens.refresh(self._keys)
        return self._tokens.names

    @property
    def most_phones(self) -> int:
        """Largest number of phones that the gateway may name; it may not have seen all changes."""
        return len(self._known)

    def is_gateway(self, node: int) -> bool:
        """Whether a node has the gateway's key."""
        return self._gateway is not None and client_of_node(node) == self._gateway

    def has_key(self, node: int) -> bool:
        """Whether a node's key is registered: a device's or the gateway's."""
        return client_of_node(node) in self._devices or self.is_gateway(node)

    def has_lost(self, client: int) -> bool:
        """Whether a device or phone was registered during the run, but is no more."""
        return client in self._known and client not in self._devices and client not in self.phones

    def name(self, client: int) -> str | None:
        """The name of a device or phone that is or was registered."""
        return self._known.get(client)
