"""What a server and a device are told in their own TOML files."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from common.toml_model import Section, read_toml, validated

__all__ = [
    "DeviceSettings",
    "ServerSettings",
    "delivery_of",
    "endpoint",
    "inside",
    "read_device",
    "read_server",
]

_ADDRESS = r"^([^\s:/\[\]]+|\[[0-9A-Fa-f:]+\]):[0-9]{1,5}$"


class ServerSettings(Section):
    """server.toml."""

    host: str = Field("0.0.0.0", min_length=1)  # noqa: S104 - devices are on other machines
    """Address to listen at; another than 0.0.0.0 and :: must be in the certificate."""
    port: int = Field(9092, ge=1, le=65535)
    """Devices and operators both come here."""
    delivery_port: int = Field(9095, ge=1, le=65535)
    """Devices fetch models here."""


class DeviceSettings(Section):
    """device.toml."""

    server: str = Field(pattern=_ADDRESS)
    """host:port of the server, by a name or address that its certificate holds."""
    delivery: str = Field(pattern=_ADDRESS)
    """host:port to fetch models from, likewise."""
    data: str = Field(pattern="^folder:.")
    """folder:PATH with one sub-folder of pictures a class; relative to this file."""
    state: str = Field("state", min_length=1)
    """Folder for the backbone, features and what the device remembers; relative to this file."""
    models: str = Field("models", min_length=1)
    """Folder for the models that are fetched; relative to this file."""
    max_examples: int = Field(0, ge=0)
    """Train on at most so many pictures; 0: all."""
    max_threads: int = Field(1, ge=1)
    """Processor threads."""
    min_interval_seconds: float = Field(0, ge=0)
    """Rest between two trainings."""
    allow: str = ""
    """Shell command that must exit with 0 before each training: on charge, on Wi-Fi, ..."""


def delivery_of(server: Path) -> Path:
    """Where a server's folder keeps published models, tokens' hashes and reports."""
    return server / "delivery"


def endpoint(host: str, port: int) -> str:
    """host:port, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def inside(folder: Path, path: str) -> Path:
    """Where a path in a settings file leads: relative to the file, unless absolute."""
    return folder / Path(path.removeprefix("folder:")).expanduser()


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
