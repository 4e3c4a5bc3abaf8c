"""A deployment's folder: what the server, each device and the operator need, and nothing else.

::

    authority/       ca.key, ca.crt; the key signs the server's certificate and can go offline
    server/          server.toml, server.key, server.crt, ca.crt, systemd's units, devices/NAME.pub,
                     revoked/: keys that are let in no more,
                     operator.secret: who can read it is an operator,
                     delivery/: hashes of tokens, and what is published;
                     trusted/, backbones/: where it signs, public keys and signed backbones
    devices/NAME/    device.toml, device.key, delivery.token, ca.crt, trusted/ and systemd's
                     units: copied to the device
    README.md        the commands
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from string import Template
from urllib.parse import urlsplit

import tomli_w

from common.errors import ConfigError, RunError
from common.files import is_empty, write_atomic, write_private
from server.delivery.tokens import issue_token, revoke_token, token_states
from simulations.deploy import VALID_DAYS
from simulations.deploy.authority import ensure_authority, sign_server, spread
from simulations.deploy.certificates import addresses_of, public_half, write_device_keys
from simulations.deploy.device_keys import comparable, revoked_keys
from simulations.deploy.settings import (
    OPERATORS_HOST,
    DeviceSettings,
    ServerSettings,
    delivery_of,
    endpoint,
    operator_secret,
    read_device,
    read_server,
)
from simulations.deploy.trust import read_keys, write_trusted

__all__ = ["Ports", "write_deployment"]

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|[0-9A-Fa-f:]+")
_UNITS = ("fedhead-device.service", "fedhead-fetch.service", "fedhead-fetch.timer")
_SERVER_UNITS = ("fedhead-server.service", "fedhead-delivery.service")
_INSTALLED = "/var/lib/fedhead"  # where units expect a folder
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")


@dataclass(frozen=True)
class Ports:
    """Where a server is to listen; None: as in its settings, or the usual ports.

    Attributes:
        devices: for devices that train.
        operators: for operators, on loopback.
        delivery: for devices that fetch models.
    """

    devices: int | None = None
    operators: int | None = None
    delivery: int | None = None


_ANY_PORTS = Ports()


def write_deployment(
    folder: Path,
    *,
    devices: Sequence[str],
    addresses: Sequence[str] = (),
    dropped: Sequence[str] = (),
    days: int | None = None,
    ports: Ports = _ANY_PORTS,
    trust: Sequence[Path] = (),
) -> list[str]:
    """Write a deployment's folder, or add devices and addresses to one.

    Keys, tokens and settings files that are there stay as they are. A device that was revoked
    gets new ones.

    Args:
        folder: made when missing.
        devices: names; each gets keys, a token and a folder of its own. Those that are known stay.
        addresses: host names and IP addresses of the server, beside those that its certificate
            has; devices use the first. Without any, the first in the certificate.
        dropped: addresses that its certificate is to have no longer.
        days: how long the server's certificate is valid. None: a year, and one that is there
            stays where its addresses do.
        ports: of the server.
        trust: public signing keys, for all its devices; none: as the server has them.

    Returns:
        What its owner has to know of the certificate and the addresses that devices use, in lines.

    Raises:
        ConfigError: with all names and addresses that cannot be used, or other ports than those
            that devices have been given.
        SignatureError: a file is no public signing key.
        RunError: the folder holds something else, or half of a pair of keys.
        DeliveryError: a device's token is missing, and the server knows it.
    """
    server = folder / "server"
    known = _known_addresses(server)
    unwanted = {*dropped} - {*addresses}
    names = [a for a in dict.fromkeys([*addresses, *known]) if a not in unwanted]
    there = folder / "devices"
    _check([*addresses, *dropped], devices, names, has_devices=there.is_dir())
    keys = read_keys(trust)
    if not is_empty(folder) and not (folder / "authority").is_dir():
        raise RunError(f"{folder} is not empty and holds no deployment: nothing was written")
    for place in (folder / "authority", server):
        _owners(place)
    ensure_authority(folder)  # first: it says that this folder is a deployment's
    settings = _server_settings(server, ports)
    if not operator_secret(server).exists():
        write_private(operator_secret(server), secrets.token_hex(32).encode() + b"\n")
    certified = [*dict.fromkeys([*names, OPERATORS_HOST])]
    certificate = server / "server.crt"
    notes = []
    if days or not certificate.exists() or {*certified} != {*addresses_of(certificate)}:
        notes = _sign(folder, certified, days or VALID_DAYS)
    _write_units(server, _SERVER_UNITS, folder=_INSTALLED)
    for name in devices:
        _write_device(folder, name, names[0], settings)
    spread(folder)
    write_trusted(folder, keys)
    _write_readme(folder, names[0], settings)
    return notes + _address_notes(folder, names)


def _sign(folder: Path, names: Sequence[str], days: int) -> list[str]:
    wanted = datetime.now(UTC) + timedelta(days=days)
    if (end := sign_server(folder, names, days)) >= wanted:
        return []
    return [
        f"the server's certificate ends on {end:%Y-%m-%d}, with its authority: "
        f"fedhead fleet {folder} renew --authority"
    ]


def _known_addresses(server: Path) -> list[str]:
    certificate = server / "server.crt"
    if not certificate.exists():
        return []
    there = addresses_of(certificate)
    return [a for a in there if a != OPERATORS_HOST] or there[:1]


def _write_readme(folder: Path, address: str, settings: ServerSettings) -> None:
    known = sorted(path.name for path in (folder / "devices").iterdir())
    values = {
        "address": address,
        "port": settings.port,
        "operator_port": settings.operator_port,
        "delivery_port": settings.delivery_port,
        "device": known[0],
        "devices": ", ".join(known),
        "version": version("fedhead"),
    }
    write_atomic(folder / "README.md", _template("README.md").substitute(values).encode())


def _address_notes(folder: Path, names: Sequence[str]) -> list[str]:
    """Which devices use which address, where they differ or one is in no certificate."""
    used: dict[str, list[str]] = {}
    for device in sorted((folder / "devices").glob("[!.]*/device.toml")):
        host = urlsplit(f"//{read_device(device.parent).server}").hostname or ""
        used.setdefault(host, []).append(device.parent.name)
    if {*used} == {names[0].lower()}:
        return []
    certain = {name.lower() for name in (*names, OPERATORS_HOST)}
    return [
        f"{host} is used by {', '.join(devices)}"
        + ("" if host in certain else ", and the server's certificate no longer names it")
        for host, devices in used.items()
    ]


def _check(
    addresses: Sequence[str], devices: Sequence[str], names: Sequence[str], *, has_devices: bool
) -> None:
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
    if not names and not problems:
        problems.append("no address of the server")
    if not devices and not has_devices:
        problems.append("no device")
    if problems:
        raise ConfigError(problems, "deployment")


def _server_settings(server: Path, ports: Ports) -> ServerSettings:
    """The settings in a server's folder, written first if there are none.

    Raises:
        ConfigError: they have other ports.
    """
    wanted = {
        "port": ports.devices,
        "operator-port": ports.operators,
        "delivery-port": ports.delivery,
    }
    given = {key: port for key, port in wanted.items() if port is not None}
    _write_once(server / "server.toml", ServerSettings.model_validate(given))
    settings = read_server(server)
    there = settings.model_dump(by_alias=True)
    problems = [
        f"{key}={there[key]}, not {port}: change it there"
        + ("" if key == "operator-port" else " and in each device.toml: devices know it")
        for key, port in given.items()
        if there[key] != port
    ]
    if problems:
        raise ConfigError(problems, str(server / "server.toml"))
    return settings


def _write_device(folder: Path, name: str, address: str, server: ServerSettings) -> None:
    device = folder / "devices" / name
    _owners(device)
    _put_aside_revoked(folder / "server", device)
    write_device_keys(device / "device.key", folder / "server" / "devices" / f"{name}.pub")
    token, delivery = device / "delivery.token", delivery_of(folder / "server")
    # One that was revoked has its token still, and stays out.
    if not token.exists() or token_states(delivery).get(name) == "unfinished":
        issue_token(delivery, name, token)
    content = {
        "server": endpoint(address, server.port),
        "delivery": endpoint(address, server.delivery_port),
        "data": "folder:images",
    }
    _write_once(device / "device.toml", DeviceSettings.model_validate(content))
    _write_units(device, _UNITS, folder=f"{_INSTALLED}/{name}", device=name)


def _owners(place: Path) -> None:
    """A folder that no other user of the machine may enter, whatever is written in it later."""
    place.mkdir(parents=True, exist_ok=True)
    place.chmod(0o700)


def _write_units(place: Path, units: Sequence[str], *, folder: str, **values: str) -> None:
    """The systemd units of a server or device, which may write in one folder."""
    sandbox = _template("sandbox").substitute(folder=folder)
    for unit in units:
        content = _template(unit).substitute(values, sandbox=sandbox)
        write_atomic(place / unit, content.encode())


def _put_aside_revoked(server: Path, device: Path) -> None:
    """Remove a device's key that was revoked, and its token: it gets new ones."""
    key = device / "device.key"
    if key.exists() and comparable(public_half(key)) in revoked_keys(server):
        delivery = delivery_of(server)
        if token_states(delivery).get(device.name) == "valid":
            revoke_token(delivery, device.name)
        (device / "delivery.token").unlink(missing_ok=True)
        key.unlink()  # last: it says that there is something to put aside


def _write_once(path: Path, settings: ServerSettings | DeviceSettings) -> None:
    if not path.exists():
        write_atomic(path, tomli_w.dumps(settings.model_dump(by_alias=True)).encode())


def _template(name: str) -> Template:
    return Template((Path(__file__).parent / f"template.{name}").read_text(encoding="utf-8"))
