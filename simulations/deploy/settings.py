"""What a server and a device are told in their own TOML files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from common.errors import RunError
from common.toml_model import Section, read_toml, validated

__all__ = [
    "OPERATORS_HOST",
    "DeviceSettings",
    "ServerSettings",
    "delivery_of",
    "endpoint",
    "inside",
    "is_address",
    "operator_secret",
    "read_device",
    "read_server",
    "server_folder",
]

# Where operators and Flower's own processes on the server reach it, over TLS as everybody.
OPERATORS_HOST = "127.0.0.1"
_ADDRESS = re.compile(r"(?:[^\s:/\[\]]+|\[[0-9A-Fa-f:]+\]):([0-9]{1,5})")


def is_address(text: str) -> bool:
    """Whether it is host:port; gRPC would take 65537 for port 1."""
    match = _ADDRESS.fullmatch(text)
    return match is not None and 1 <= int(match[1]) <= 65535


def _address(text: str) -> str:
    if not is_address(text):
        raise ValueError("must be host:port, with an IPv6 address in brackets")
    return text


def _folder(text: str) -> str:
    if not re.match("folder:.", text):
        raise ValueError("must be folder:PATH: a device reads a folder, one sub-folder a class")
    return text


Address = Annotated[str, AfterValidator(_address)]
FolderSource = Annotated[str, AfterValidator(_folder)]


class ServerSettings(Section):
    """server.toml."""

    host: str = Field("0.0.0.0", min_length=1)  # noqa: S104 - devices are on other machines
    """Address at which devices are listened for."""
    port: int = Field(9092, ge=1, le=65535)
    """Devices come here, and nobody else."""
    operator_port: int = Field(9093, ge=1, le=65535)
    """Operators come here, from this machine alone and with the operator's secret."""
    delivery_port: int = Field(9095, ge=1, le=65535)
    """Devices fetch models here."""
    max_connections: int = Field(1000, ge=1, le=1_000_000)
    """Open connections of devices; strangers' are dropped first, the oldest of them first."""
    max_connections_per_address: int = Field(500, ge=1, le=1_000_000)
    """Likewise from one address, behind which there may be many devices."""
    max_request_megabytes: int = Field(64, ge=1, le=65_536)
    """Largest request of a device: what it sends in one piece, a head or a Gram matrix."""
    max_request_seconds: float = Field(300, gt=0)
    """A device's request must have arrived by then."""
    max_requests_per_second: float = Field(100, gt=0)
    """Of one device, on average; ten seconds' worth at once."""


class DeviceSettings(Section):
    """device.toml."""

    server: Address
    """host:port of the server, by a name or address that its certificate holds."""
    delivery: Address
    """host:port to fetch models from, likewise."""
    data: FolderSource
    """folder:PATH with one sub-folder of images a class; relative to this file."""
    state: str = Field("state", min_length=1)
    """Folder for the backbone, features and what the device remembers; relative to this file."""
    models: str = Field("models", min_length=1)
    """Folder for the models that are fetched; relative to this file."""
    max_examples: int = Field(0, ge=0)
    """Train on at most so many images; 0: all."""
    max_threads: int = Field(1, ge=1)
    """Processor threads."""
    min_interval_seconds: float = Field(0, ge=0)
    """Rest between two trainings."""
    allow: str = ""
    """Shell command that must exit with 0 before each training: on charge, on Wi-Fi, ..."""


def delivery_of(server: Path) -> Path:
    """Where a server's folder keeps published models, tokens' hashes and reports."""
    return server / "delivery"


def operator_secret(server: Path) -> Path:
    """The file in a server's folder whose content lets an operator in."""
    return server / "operator.secret"


def endpoint(host: str, port: int) -> str:
    """host:port, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def inside(folder: Path, path: str) -> Path:
    """Where a path in a settings file leads: relative to the file, unless absolute."""
    return folder / Path(path.removeprefix("folder:")).expanduser()


def server_folder(folder: Path) -> Path:
    """The server's folder of a deployment, or itself.

    Raises:
        RunError: neither.
    """
    for server in (folder / "server", folder):
        if (server / "server.toml").is_file():
            return server.resolve()
    raise RunError(f"{folder} holds no deployment and no server: fedhead deploy writes them")


def read_server(folder: Path) -> ServerSettings:
    """The settings in a server's folder.

    Raises:
        ConfigError: with all problems of the file.
    """
    path = folder / "server.toml"
    return validated(ServerSettings, read_toml(path), str(path))


def read_device(folder: Path) -> DeviceSettings:
    """The settings in a device's folder.

    Raises:
        ConfigError: with all problems of the file.
    """
    path = folder / "device.toml"
    return validated(DeviceSettings, read_toml(path), str(path))
