"""A deployment's folder: the files that the server, each device and the operator need.

::

    authority/       ca.key, ca.crt; the key signs the server's certificate and can be kept offline
    server/          server.toml, server.key, server.crt, ca.crt, systemd's units, devices/NAME.pub,
                     revoked/: keys that are shut out,
                     operator.secret: anybody who can read it is an operator,
                     delivery/: hashes of tokens, and published files;
                     trusted/, backbones/: with signing, public keys and signed backbones
                     gateway/: with phones, the gateway's key, and files and figures of phones
    devices/NAME/    device.toml, device.key, delivery.token, ca.crt, trusted/ and systemd's
                     units: copied to the device
    phones/NAME/     phone.toml, phone.token, ca.crt, trusted/: put into the phone's app
    README.md        the commands

``write_deployment`` takes all that ``fedhead deploy`` does at once, so it has more than seven
parameters.
"""

from __future__ import annotations

import re
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import tomli_w

from common.delivery.tokens import issue_token, revoke_token, token_states
from common.errors import ConfigError, RunError
from common.files import is_empty, write_atomic, write_private
from simulations.deploy import VALID_DAYS
from simulations.deploy.authority import ensure_authority, sign_server, spread
from simulations.deploy.certificates import addresses_of, public_half, write_device_keys
from simulations.deploy.device_keys import comparable, revoked_keys
from simulations.deploy.instructions import (
    DEVICE_UNITS,
    INSTALLED,
    SERVER_UNITS,
    write_readme,
    write_units,
)
from simulations.deploy.phones import name_problems, write_phone
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
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")


_KNOWN_TO = {
    "port": " and in each device.toml: devices know it",
    "operator-port": "",
    "delivery-port": " and in each device.toml: devices know it",
    "gateway-port": " and in each phone.toml: phones know it",
}


@dataclass(frozen=True)
class Ports:
    """The ports of a server; None: the port in its settings, or the default.

    Attributes:
        devices: port for devices that train.
        operators: port for operators, on loopback.
        delivery: port for devices that fetch models.
        gateway: port for phones that take part in rounds.
    """

    devices: int | None = None
    operators: int | None = None
    delivery: int | None = None
    gateway: int | None = None


_ANY_PORTS = Ports()


def write_deployment(
    folder: Path,
    *,
    devices: Sequence[str] = (),
    phones: Sequence[str] = (),
    addresses: Sequence[str] = (),
    dropped: Sequence[str] = (),
    days: int | None = None,
    ports: Ports = _ANY_PORTS,
    trust: Sequence[Path] = (),
) -> list[str]:
    """Write a deployment's folder, or add devices, phones and addresses to it.

    Existing keys, tokens and settings files stay. A revoked device or phone gets new ones.

    Args:
        folder: the deployment's folder; it is made if missing.
        devices: names of devices. Each gets keys, a token and its own folder; known ones stay.
        phones: names of phones. Each gets a token and its own folder; known ones stay.
        addresses: host names and IP addresses of the server, added to those in its certificate.
            New devices use the first; if none is given, the first in the certificate.
        dropped: addresses to remove from its certificate.
        days: days for which the server's certificate is valid. None: a year, and an existing
            certificate with the same addresses stays.
        ports: the server's ports.
        trust: public signing keys for all its devices; empty: the server's present keys.

    Returns:
        Lines for its owner about the certificate and the addresses that devices use.

    Raises:
        ConfigError: names all names and addresses that cannot be used; or ports differ from those
            that devices already have.
        SignatureError: a file is not a public signing key.
        RunError: the folder holds something else, or only one key of a pair.
        DeliveryError: a device's token file is missing, but the server has its hash.
    """
    server = folder / "server"
    known = _known_addresses(server)
    unwanted = {*dropped} - {*addresses}
    names = [a for a in dict.fromkeys([*addresses, *known]) if a not in unwanted]
    has_some = (folder / "devices").is_dir()
    _check([*addresses, *dropped], devices, phones, names, has_some=has_some)
    if problems := name_problems(server, devices, phones):
        raise ConfigError(problems, "deployment")
    keys = read_keys(trust)
    if not is_empty(folder) and not (folder / "authority").is_dir():
        raise RunError(f"{folder} is not empty and is not a deployment: nothing was written")
    for place in (folder / "authority", server):
        _owners(place)
    ensure_authority(folder)  # first, because it marks the folder as a deployment's
    settings = _server_settings(server, ports)
    if not operator_secret(server).exists():
        write_private(operator_secret(server), secrets.token_hex(32).encode() + b"\n")
    certified = [*dict.fromkeys([*names, OPERATORS_HOST])]
    certificate = server / "server.crt"
    notes = []
    if days or not certificate.exists() or {*certified} != {*addresses_of(certificate)}:
        notes = _sign(folder, certified, days or VALID_DAYS)
    write_units(server, SERVER_UNITS, folder=INSTALLED)
    for place in (folder / "devices", folder / "phones", server / "devices"):
        place.mkdir(parents=True, exist_ok=True)
    for name in devices:
        _write_device(folder, name, names[0], settings)
    for name in phones:
        write_phone(folder, name, names[0], settings)
    spread(folder)
    write_trusted(folder, keys)
    write_readme(folder, names[0], settings)
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


def _address_notes(folder: Path, names: Sequence[str]) -> list[str]:
    """Lines on which devices use which address, if they differ or one is not in the certificate."""
    used: dict[str, list[str]] = {}
    for device in sorted((folder / "devices").glob("[!.]*/device.toml")):
        host = urlsplit(f"//{read_device(device.parent).server}").hostname or ""
        used.setdefault(host, []).append(device.parent.name)
    if {*used} == {names[0].lower()}:
        return []
    certain = {name.lower() for name in (*names, OPERATORS_HOST)}
    return [
        f"{host} is used by {', '.join(devices)}"
        + ("" if host in certain else ", which is no longer in the server's certificate")
        for host, devices in used.items()
    ]


def _check(
    addresses: Sequence[str],
    devices: Sequence[str],
    phones: Sequence[str],
    names: Sequence[str],
    *,
    has_some: bool,
) -> None:
    problems = [
        f"address '{a}' is neither a host name nor an IP address"
        for a in addresses
        if not _HOST.fullmatch(a)
    ]
    for kind, given in (("device", devices), ("phone", phones)):
        problems += [
            f"{kind} '{d}' must be letters, digits, - and _, at most 32"
            for d in given
            if not _NAME.fullmatch(d)
        ]
        twice = sorted(d for d, count in Counter(given).items() if count > 1)
        problems += [f"{kind} '{d}' is named twice" for d in twice]
    if not names and not problems:
        problems.append("an address of the server is missing: give --address")
    if not (devices or phones or has_some):
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
        "gateway-port": ports.gateway,
    }
    given = {key: port for key, port in wanted.items() if port is not None}
    _write_once(server / "server.toml", ServerSettings.model_validate(given))
    settings = read_server(server)
    there = settings.model_dump(by_alias=True)
    problems = [
        f"{key}={there[key]}, not {port}: change it there{_KNOWN_TO[key]}"
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
    # A revoked device still has its token file; it is removed with the key below.
    if not token.exists() or token_states(delivery).get(name) == "unfinished":
        issue_token(delivery, name, token)
    content = {
        "server": endpoint(address, server.port),
        "delivery": endpoint(address, server.delivery_port),
        "data": "folder:images",
    }
    _write_once(device / "device.toml", DeviceSettings.model_validate(content))
    write_units(device, DEVICE_UNITS, folder=f"{INSTALLED}/{name}", device=name)


def _owners(place: Path) -> None:
    """Make a folder that no other user of the machine may enter."""
    place.mkdir(parents=True, exist_ok=True)
    place.chmod(0o700)


def _put_aside_revoked(server: Path, device: Path) -> None:
    """Remove a device's revoked key and its token, so that it gets new ones."""
    key = device / "device.key"
    if key.exists() and comparable(public_half(key)) in revoked_keys(server):
        delivery = delivery_of(server)
        if token_states(delivery).get(device.name) == "valid":
            revoke_token(delivery, device.name)
        (device / "delivery.token").unlink(missing_ok=True)
        key.unlink()  # last, because the key shows that there is something to remove


def _write_once(path: Path, settings: ServerSettings | DeviceSettings) -> None:
    if not path.exists():
        write_atomic(path, tomli_w.dumps(settings.model_dump(by_alias=True)).encode())
