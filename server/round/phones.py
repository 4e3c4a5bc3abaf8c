"""The phones of a deployment: who has a valid token and no key of a SuperNode.

A phone takes part by way of the gateway, which knows it by its token. Its client id follows from
the token's name, never from what it says.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from common.delivery.tokens import token_state
from common.errors import DeliveryError
from common.identity import client_of_phone

__all__ = ["Phones"]

_Stamp = tuple[int, int, int]


class Phones:
    """The phones by client id, as the folder of tokens has them.

    There may be many thousands: the folder is listed again only when it has changed, and of its
    files only those are read that have changed.

    Args:
        server: the deployment's server folder.

    Attributes:
        names: the phones' names by client id.
    """

    def __init__(self, server: Path) -> None:
        self._delivery = server / "delivery"
        self._changed, self._without = 0, frozenset[str]()
        self._stamps: dict[str, _Stamp] = {}
        self._valid: dict[str, int] = {}  # client ids by name, devices' among them
        self.names: dict[int, str] = {}

    def refresh(self, devices: Collection[str]) -> None:
        """Read what has changed.

        Args:
            devices: names that have a key; they are no phones.
        """
        try:
            changed = (self._delivery / "tokens").stat().st_mtime_ns
        except FileNotFoundError:
            changed = 0
        without = frozenset(devices)
        if changed == self._changed and without == self._without:
            return
        if changed != self._changed:
            self._read()
        self._changed, self._without = changed, without
        self.names = {i: name for name, i in self._valid.items() if name not in without}

    def _read(self) -> None:
        found = dict(_stamps(self._delivery / "tokens"))
        for name in self._stamps.keys() - found:
            self._valid.pop(name, None)
        for name in [name for name, stamp in found.items() if self._stamps.get(name) != stamp]:
            if _is_valid(self._delivery, name):
                self._valid[name] = client_of_phone(name)
            else:
                self._valid.pop(name, None)
        self._stamps = found


def _stamps(folder: Path) -> list[tuple[str, _Stamp]]:
    """Each token's name, and what changes with its file."""
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return []
    found = []
    for entry in entries:
        if entry.name.startswith("."):
            continue
        try:
            status = entry.stat()
        except FileNotFoundError:
            continue
        found.append((entry.name, (status.st_mtime_ns, status.st_ino, status.st_size)))
    return found


def _is_valid(delivery: Path, name: str) -> bool:
    try:
        return token_state(delivery, name) == "valid"
    except DeliveryError:  # no name of fedhead's
        return False
