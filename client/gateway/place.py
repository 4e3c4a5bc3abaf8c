"""The files of a gateway in the server's folder, and its settings there."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common.errors import ConfigError

__all__ = ["Place", "Settings", "read_settings"]


@dataclass(frozen=True)
class Place:
    """Paths of a gateway.

    Attributes:
        server: the server's folder of a deployment.
    """

    server: Path

    @property
    def delivery(self) -> Path:
        """The folder with the hashes of tokens."""
        return self.server / "delivery"

    @property
    def models(self) -> Path:
        """The finished models that are published."""
        return self.delivery / "artifacts"

    def device_key(self, name: str) -> Path:
        """The public key of a device's SuperNode, which no phone has."""
        return self.server / "devices" / f"{name}.pub"

    @property
    def backbones(self) -> Path:
        """Files of backbones for phones, one folder for each fingerprint."""
        return self.server / "gateway" / "backbones"

    @property
    def state(self) -> Path:
        """All that the gateway keeps; for its owner alone, because updates of phones are in it."""
        return self.server / "gateway" / "state"

    @property
    def fleet(self) -> Path:
        """Counters, and the phones that the gateway has met."""
        return self.state / "fleet.json"

    @property
    def runs(self) -> Path:
        """What runs are about."""
        return self.state / "runs"

    @property
    def rounds(self) -> Path:
        """Open rounds with their updates, and the verdicts of the last closed ones."""
        return self.state / "rounds"

    @property
    def uploads(self) -> Path:
        """Parts of arrays."""
        return self.state / "uploads"

    @property
    def clients(self) -> Path:
        """The phones' memories of a run, as a device keeps its own."""
        return self.state / "clients"


@dataclass(frozen=True)
class Settings:
    """The gateway's lines of server.toml.

    Attributes:
        host: address to listen on.
        gateway_port: port for phones.
        check_ins_per_second: of all phones together; the pace of the whole fleet follows from it.
        max_phone_calls: largest number of phones' calls at once.
        max_held_calls: largest number of check-ins that wait for a task at once.
    """

    host: str = "0.0.0.0"  # noqa: S104 - phones are on other machines
    gateway_port: int = 9096
    check_ins_per_second: float = 20.0
    max_phone_calls: int = 2000
    max_held_calls: int = 200


def read_settings(place: Place) -> Settings:
    """The settings in server.toml, or their defaults.

    Raises:
        ConfigError: a value is of another type or not above 0, or the file cannot be read.
    """
    path = place.server / "server.toml"
    try:
        found: Mapping[str, object] = tomllib.loads(path.read_text())
    except FileNotFoundError:
        found = {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigError([f"cannot be read: {exc}"], str(path)) from exc
    values: dict[str, object] = {}
    problems = []
    for name, default in vars(Settings()).items():
        key = name.replace("_", "-")
        value = found.get(key, default)
        if isinstance(default, float) and type(value) is int:
            value = float(value)
        is_positive = not isinstance(value, int | float) or value > 0
        if type(value) is not type(default) or not is_positive:
            kind = type(default).__name__
            problems.append(f"{key} is {value!r}, expected {kind}, above 0 if it is a number")
        values[name] = value
    if problems:
        raise ConfigError(problems, str(path))
    return Settings(**values)  # type: ignore[arg-type] # their types were compared
