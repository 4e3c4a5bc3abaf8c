"""A deployment's folder: what the server, each device and the operator need, and nothing else.

::

    authority/       ca.key, ca.crt; the key signs the server's certificate and can go offline
    server/          server.toml, server.key, server.crt, ca.crt, devices/NAME.pub
    devices/NAME/    device.toml, device.key, ca.crt, fedhead-device.service: copied to the device
    README.md        the commands
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from string import Template

import tomli_w

from common.errors import ConfigError, RunError
from common.files import write_atomic
from simulations.deploy.certificates import write_authority, write_device_keys, write_server
from simulations.deploy.settings import DeviceSettings, ServerSettings

__all__ = ["write_deployment"]

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|[0-9A-Fa-f:]+")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")


def write_deployment(
    folder: Path, *, addresses: Sequence[str], devices: Sequence[str], port: int, days: int
) -> None:
    """Write a deployment's folder, or add devices and renew the server's certificate in one.

    Keys and settings files that are there stay as they are.

    Args:
        folder: made when missing.
        addresses: host names and IP addresses of the server; devices use the first.
        devices: names; each gets keys and a folder of its own.
        port: of the server.
        days: how long the server's certificate is valid.

    Raises:
        ConfigError: with all names and addresses that cannot be used.
        RunError: the folder holds something else, or half of a pair of keys.
    """
    _check(addresses, devices)
    if folder.exists() and any(folder.iterdir()) and not (folder / "authority").is_dir():
        raise RunError(f"{folder} is not empty and holds no deployment: nothing was written")
    authority = folder / "authority" / "ca.key", folder / "authority" / "ca.crt"
    server = folder / "server"
    write_authority(*authority)
    write_server(authority, server / "server.key", server / "server.crt", addresses, days)
    _copy(authority[1], server / "ca.crt")
    settings = ServerSettings.model_validate({"port": port})
    _write_once(server / "server.toml", tomli_w.dumps(settings.model_dump(by_alias=True)))
    for name in devices:
        _write_device(folder, name, f"{addresses[0]}:{port}")
        _copy(authority[1], folder / "devices" / name / "ca.crt")
    names = sorted(path.name for path in (folder / "devices").iterdir())
    values = {
        "address": addresses[0],
        "port": port,
        "device": names[0],
        "devices": ", ".join(names),
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


def _write_device(folder: Path, name: str, server: str) -> None:
    device = folder / "devices" / name
    write_device_keys(device / "device.key", folder / "server" / "devices" / f"{name}.pub")
    content = {"server": server, "data": "folder:pictures"}
    settings = DeviceSettings.model_validate(content)
    _write_once(device / "device.toml", tomli_w.dumps(settings.model_dump(by_alias=True)))
    unit = _template("fedhead-device.service").substitute(device=name)
    write_atomic(device / "fedhead-device.service", unit.encode())


def _write_once(path: Path, content: str) -> None:
    if not path.exists():
        write_atomic(path, content.encode())


def _template(name: str) -> Template:
    return Template((Path(__file__).parent / f"template.{name}").read_text(encoding="utf-8"))


def _copy(source: Path, path: Path) -> None:
    write_atomic(path, lambda temporary: shutil.copyfile(source, temporary))
