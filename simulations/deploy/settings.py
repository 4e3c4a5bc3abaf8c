"""The settings of a server and of a device, from their TOML files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from common.errors import RunError
from common.phones import GATEWAY
from common.toml_model import Section, read_toml, validated

__all__ = [
    "OPERATORS_HOST",
    "DeviceSettings",
    "ServerSettings",
    "delivery_of",
    "endpoint",
    "gateway_folder",
    "inside",
    "is_address",
    "operator_secret",
    "phone_folders",
    "read_device",
    "read_server",
    "server_folder",
]

# Operators and Flower's processes on the server reach it here, over TLS like everybody.
OPERATORS_HOST = "127.0.0.1"
_ADDRESS = re.compile(r"(?:[^\s:/\[\]]+|\[[0-9A-Fa-f:]+\]):([0-9]{1,5})")


def is_address(text: str) -> bool:
    """Whether the text is host:port. Checked here because gRPC would take 65537 as port 1."""
    match = _ADDRESS.fullmatch(text)
    return match is not None and 1 <= int(match[1]) <= 65535


def _address(text: str) -> str:
    if not is_address(text):
        raise ValueError("must be host:port, with an IPv6 address in brackets")
    return text


def _folder(text: str) -> str:
    if not re.match("folder:.", text):
        raise ValueError("must be folder:PATH, a folder with one sub-folder per class")
    return text


Address = Annotated[str, AfterValidator(_address)]
FolderSource = Annotated[str, AfterValidator(_folder)]


class ServerSettings(Section):
    """server.toml."""

    host: str = Field("0.0.0.0", min_length=1)  # noqa: S104 - devices are on other machines
    """Address on which the server listens for devices."""
    port: int = Field(9092, ge=1, le=65535)
    """Port for devices only."""
    operator_port: int = Field(9093, ge=1, le=65535)
    """Port for operators, from this machine only and with the operator's secret."""
    delivery_port: int = Field(9095, ge=1, le=65535)
    """Port where devices fetch models."""
    gateway_port: int = Field(9096, ge=1, le=65535)
    """Port where a gateway serves phones."""
    check_ins_per_second: float = Field(20, gt=0)
    """Calls of all phones together by which they say that they are there: the fleet's pace."""
    max_phone_calls: int = Field(2000, ge=1, le=1_000_000)
    """Largest number of phones' calls at once."""
    max_held_calls: int = Field(200, ge=1, le=1_000_000)
    """Largest number of phones' calls that wait for a task, so that few phones act at once."""
    max_connections: int = Field(1000, ge=1, le=1_000_000)
    """Largest number of open connections. Beyond it, strangers' oldest connections are closed."""
    max_connections_per_address: int = Field(500, ge=1, le=1_000_000)
    """The same for one address; there may be many devices behind it."""
    max_request_megabytes: int = Field(64, ge=1, le=65_536)
    """Largest request of a device, which holds one head or one Gram matrix."""
    max_request_seconds: float = Field(300, gt=0)
    """Seconds within which a device's request must have arrived."""
    max_requests_per_second: float = Field(100, gt=0)
    """Requests of one device per second, on average; ten seconds' worth may come at once."""


class DeviceSettings(Section):
    """device.toml."""

    server: Address
    """host:port of the server, with a name or address from its certificate."""
    delivery: Address
    """host:port to fetch models from, with such a name or address."""
    data: FolderSource
    """folder:PATH with one sub-folder of images per class; relative to this file."""
    state: str = Field("state", min_length=1)
    """Folder for the backbone, features and the device's memory; relative to this file."""
    models: str = Field("models", min_length=1)
    """Folder for fetched models; relative to this file."""
    max_examples: int = Field(0, ge=0)
    """Largest number of images to train on; 0: all."""
    max_threads: int = Field(1, ge=1)
    """Processor threads."""
    min_interval_seconds: float = Field(0, ge=0)
    """Least seconds between the starts of two trainings."""
    allow: str = ""
    """Shell command that must exit with 0 before each training. It may check that the device is
    charging or on Wi-Fi, for example."""


def delivery_of(server: Path) -> Path:
    """The folder of published models, hashes of tokens and reports in a server's folder."""
    return server / "delivery"


def gateway_folder(server: Path) -> Path:
    """The gateway's folder in a server's folder: its key, its state, files for phones."""
    return server / GATEWAY


def phone_folders(deployment: Path) -> list[Path]:
    """The folders of a deployment's phones, in the order of names."""
    return sorted(path for path in (deployment / "phones").glob("[!.]*") if path.is_dir())


def operator_secret(server: Path) -> Path:
    """The file of the operator's secret in a server's folder."""
    return server / "operator.secret"


def endpoint(host: str, port: int) -> str:
    """host:port, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def inside(folder: Path, path: str) -> Path:
    """The full path of a path in a settings file, which is relative to the file or absolute."""
    return folder / Path(path.removeprefix("folder:")).expanduser()


def server_folder(folder: Path) -> Path:
    """The server's folder in a deployment's folder; a server's folder is returned as it is.

    Raises:
        RunError: the folder is neither.
    """
    for server in (folder / "server", folder):
        if (server / "server.toml").is_file():
            return server.resolve()
    raise RunError(f"{folder} is not a folder of fedhead deploy, and not its server's folder")


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
