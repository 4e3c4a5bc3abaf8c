"""The devices of a deployment: which name belongs to which key, and which client that is.

``fedhead deploy`` writes a device's public key, and its registration the client id that Flower
gave to this key, both into the server's folder. So who a node is follows from the key that it has
proved to have, never from what it says.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common.errors import DamagedError, RunError
from common.identity import client_of_node
from common.readback import JsonFile

__all__ = ["CLIENT", "Device", "Roster", "client_file", "read_roster"]

logger = logging.getLogger("fedhead")

CLIENT = JsonFile("client id of a device")


@dataclass(frozen=True)
class Device:
    """A registered device.

    Attributes:
        name: that its owner gave it.
        client: its client id.
    """

    name: str
    client: int


def client_file(server: Path, name: str) -> Path:
    """Where the client id of a device is kept, beside its public key."""
    return server / "devices" / f"{name}.client"


def read_roster(server: Path) -> dict[str, Device]:
    """The registered devices of a server's folder, by name; a key alone is not registered yet.

    Raises:
        RunError: there is no such folder.
    """
    folder = server / "devices"
    if not folder.is_dir():
        raise RunError(f"{folder} is missing: fedhead deploy writes it")
    found = {}
    for key in sorted(folder.glob("[!.]*.pub")):
        file = client_file(server, key.stem)
        try:
            found[key.stem] = Device(key.stem, int(CLIENT.read(file)["client"]))
        except FileNotFoundError:
            continue
        except (OSError, DamagedError) as exc:
            logger.warning("%s is left out: %s", key.stem, exc)
    return found


class Roster:
    """The registered devices as a run needs them; they come and go while it is on.

    Args:
        server: the deployment's server folder.

    Raises:
        RunError: there is no such folder.
    """

    def __init__(self, server: Path) -> None:
        self._server = server
        self._names: dict[int, str] = {}
        self._devices: Mapping[int, Device] = {}
        self._changed = 0
        self.refresh()

    def refresh(self) -> None:
        """Read the folder again if it has changed.

        Raises:
            RunError: it is gone.
        """
        try:
            changed = (self._server / "devices").stat().st_mtime_ns
        except OSError:
            changed = 0
        if changed and changed == self._changed:
            return
        self._devices = {d.client: d for d in read_roster(self._server).values()}
        self._changed = changed
        # One that is revoked is still called by its name.
        self._names |= {client: device.name for client, device in self._devices.items()}

    @property
    def names(self) -> list[str]:
        """Of the registered devices, sorted."""
        return sorted(device.name for device in self._devices.values())

    def device(self, node: int) -> Device | None:
        """Whose key a node has shown; None: nobody's that is registered."""
        return self._devices.get(client_of_node(node))

    def name(self, client: int) -> str | None:
        """The name of a device that is or was registered."""
        return self._names.get(client)
