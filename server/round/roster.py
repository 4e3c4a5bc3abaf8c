"""The devices of a deployment: the name, the key and the client id of each.

``fedhead deploy`` writes a device's public key into the server's folder. Its registration adds the
client id that Flower gave to this key. So the key that a node has proved to have decides its
identity, never what the node says.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common.errors import DamagedError, RunError
from common.identity import client_of_node
from common.readback import JsonFile

__all__ = ["CLIENT", "Device", "Roster", "client_file", "read_client", "read_roster"]

logger = logging.getLogger("fedhead")

CLIENT = JsonFile("client id of a device")


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
    """A run's view of the registered devices, which may change during the run.

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
            RunError: the folder is missing.
        """
        try:
            changed = (self._server / "devices").stat().st_mtime_ns
        except OSError:
            changed = 0
        if changed and changed == self._changed:
            return
        self._devices = {d.client: d for d in read_roster(self._server).values()}
        self._changed = changed
        # The name of a revoked device is kept for messages.
        self._names |= {client: device.name for client, device in self._devices.items()}

    @property
    def names(self) -> list[str]:
        """Names of the registered devices, sorted."""
        return sorted(device.name for device in self._devices.values())

    def device(self, node: int) -> Device | None:
        """The registered device with a node's key; None: there is none."""
        return self._devices.get(client_of_node(node))

    def has_lost(self, client: int) -> bool:
        """Whether a device was registered during the run, but is no more."""
        return client in self._names and client not in self._devices

    def name(self, client: int) -> str | None:
        """The name of a device that is or was registered."""
        return self._names.get(client)
