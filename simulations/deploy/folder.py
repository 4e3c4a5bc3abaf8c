"""A deployment's folder: what the server, each device and the operator need, and nothing else.

::

    authority/       ca.key, ca.crt; the key signs the server's certificate and can go offline
    server/          server.toml, server.key, server.crt, ca.crt, devices/NAME.pub,
                     delivery/: hashes of tokens, and what is published;
                     trusted/, backbones/: where it signs, public keys and signed backbones
    devices/NAME/    device.toml, device.key, delivery.token, ca.crt, trusted/ and systemd's
                     units: copied to the device
    README.md        the commands
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from string import Template

import tomli_w

from common.errors import ConfigError, RunError
from common.files import is_empty, write_atomic
from server.delivery.tokens import issue_token
from simulations.deploy.certificates import write_authority, write_device_keys, write_server
from simulations.deploy.settings import (
    DeviceSettings,
    ServerSettings,
    delivery_of,
    endpoint,
    read_server,
)
from simulations.deploy.trust import read_keys, write_trusted

__all__ = ["write_deployment"]

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|[0-9A-Fa-f:]+")
# Where Flower's own processes on the server reach it, over TLS as everybody.
_LOOPBACK = ("127.0.0.1", "::1")
_UNITS = ("fedhead-device.service", "fedhead-fetch.service", "fedhead-fetch.timer")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")


def write_deployment(
    folder: Path,
    *,
    addresses: Sequence[str],
    devices: Sequence[str],
    days: int,
    port: int | None = None,
    delivery_port: int | None = None,
    trust: Sequence[Path] = (),
) -> None:
    """Write a deployment's folder, or add devices and renew the server's certificate in one.

    Keys, tokens and settings files that are there stay as they are.

    Args:
        folder: made when missing.
        addresses: host names and IP addresses of the server; devices use the first.
        devices: names; each gets keys, a token and a folder of its own.
        days: how long the server's certificate is valid.
        port: of the server; None: as in its settings.
        delivery_port: of the server, for models; likewise.
        trust: public signing keys, for all its devices; none: as the server has them.

    Raises:
        ConfigError: with all names and addresses that cannot be used, or other ports than those
            that devices have been given.
        SignatureError: a file is no public signing key.
        RunError: the folder holds something else, or half of a pair of keys.
        DeliveryError: a device's token is missing, and the server knows it.
    """
    _check(addresses, devices)
    keys = read_keys(trust)
    if not is_empty(folder) and not (folder / "authority").is_dir():
        raise RunError(f"{folder} is not empty and holds no deployment: nothing was written")
    authority = folder / "authority" / "ca.key", folder / "authority" / "ca.crt"
    server = folder / "server"
    write_authority(*authority)
    settings = _server_settings(server, {"port": port, "delivery-port": delivery_port})
    names = list(dict.fromkeys([*addresses, *_LOOPBACK]))
    write_server(authority, server / "server.key", server / "server.crt", names, days)
    _copy(authority[1], server / "ca.crt")
    for name in devices:
        _write_device(folder, name, addresses[0], settings)
        _copy(authority[1], folder / "devices" / name / "ca.crt")
    write_trusted(folder, keys)
    known = sorted(path.name for path in (folder / "devices").iterdir())
    values = {
        "address": addresses[0],
        "port": settings.port,
        "delivery_port": settings.delivery_port,
        "device": known[0],
        "devices": ", ".join(known),
        "version": version("fedhead"),
    }
    write_atomic(folder / "README.md", _template("README.md").substitute(values).encode())


def _check(addresses: Sequence[str], devices: Sequence[str]) -> None:
    problems = [
        f"address '{a}' is neither a host name nor an IP address"
        for a in addresses
        if not _HOST.fullmatch(a)
    ]
    problems += [
        f"device '{d}' must be letters, digits, - and _, at most 32"
        for d in devices
        if not _NAME.fullmatch(d)
    ]
    problems += [
        f"device '{d}' is named twice" for d in sorted(set(devices)) if devices.count(d) > 1
    ]
    if not addresses:
        problems.append("no address of the server")
    if not devices:
        problems.append("no device")
    if problems:
        raise ConfigError(problems, "deployment")


def _server_settings(server: Path, ports: Mapping[str, int | None]) -> ServerSettings:
    """The settings in a server's folder, written first if there are none.

    Raises:
        ConfigError: they have other ports.
    """
    given = {key: port for key, port in ports.items() if port is not None}
    _write_once(server / "server.toml", ServerSettings.model_validate(given))
    settings = read_server(server)
    there = settings.model_dump(by_alias=True)
    problems = [
        f"{key}={there[key]}, not {port}: devices know it; change it there and in each device.toml"
        for key, port in given.items()
        if there[key] != port
    ]
    if problems:
        raise ConfigError(problems, str(server / "server.toml"))
    return settings


def _write_device(folder: Path, name: str, address: str, server: ServerSettings) -> None:
    device = folder / "devices" / name
    write_device_keys(device / "device.key", folder / "server" / "devices" / f"{name}.pub")
    # One that was revoked has its token still, and stays out.
    if not (device / "delivery.token").exists():
        issue_token(delivery_of(folder / "server"), name, device / "delivery.token")
    content = {
        "server": endpoint(address, server.port),
        "delivery": endpoint(address, server.delivery_port),
        "data": "folder:pictures",
    }
    _write_once(device / "device.toml", DeviceSettings.model_validate(content))
    values = {"device": name, "sandbox": _template("sandbox").substitute(device=name)}
    for unit in _UNITS:
        write_atomic(device / unit, _template(unit).substitute(values).encode())


def _write_once(path: Path, settings: ServerSettings | DeviceSettings) -> None:
    if not path.exists():
        write_atomic(path, tomli_w.dumps(settings.model_dump(by_alias=True)).encode())


def _template(name: str) -> Template:
    return Template((Path(__file__).parent / f"template.{name}").read_text(encoding="utf-8"))


def _copy(source: Path, path: Path) -> None:
    write_atomic(path, lambda temporary: shutil.copyfile(source, temporary))
