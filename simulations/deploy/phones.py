"""A deployment's phones: a folder for each, and a token by which the gateway knows it.

A phone has no key, as it has no SuperNode: whoever has a valid token and no key is a phone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import tomli_w

from client.phone.settings import PhoneSettings
from common.delivery.tokens import issue_token, token_state
from common.errors import ConfigError
from common.files import write_atomic
from common.phones import GATEWAY
from simulations.deploy.settings import ServerSettings, delivery_of, endpoint, phone_folders

__all__ = ["name_problems", "read_names", "write_phone"]


def read_names(file: Path) -> list[str]:
    """Names from a file with one on each line; empty lines and what follows a # are left out.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError([f"cannot be read: {exc}"], str(file)) from exc
    names = [line.partition("#")[0].strip() for line in lines]
    return [name for name in names if name]


def name_problems(server: Path, devices: Sequence[str], phones: Sequence[str]) -> list[str]:
    """Why names cannot be used, as a phone and a device must not have the same.

    Args:
        server: the server's folder, which may be missing yet.
        devices: names of devices to add.
        phones: names of phones to add.
    """
    keys = {path.stem for path in (server / "devices").glob("[!.]*.pub")} - {GATEWAY}
    known = (keys | {*devices}) - {GATEWAY}
    there = {path.name for path in phone_folders(server.parent)} - keys
    problems = [
        f"{kind} '{GATEWAY}': the gateway has this name"
        for kind, names in (("device", devices), ("phone", phones))
        if GATEWAY in names
    ]
    problems += [f"phone '{name}' is a device here" for name in _both(phones, known)]
    return problems + [f"device '{name}' is a phone here" for name in _both(devices, there)]


def _both(names: Sequence[str], others: Collection[str]) -> list[str]:
    return sorted({*names} & {*others})


def write_phone(folder: Path, name: str, address: str, server: ServerSettings) -> None:
    """Write a phone's folder: its token and its settings. A revoked phone gets a new token.

    Raises:
        DeliveryError: its token file is missing, but the server has its hash.
    """
    phone, delivery = folder / "phones" / name, delivery_of(folder / "server")
    phone.mkdir(parents=True, exist_ok=True)
    phone.chmod(0o700)
    token, state = phone / "phone.token", token_state(delivery, name)
    if state == "revoked":
        token.unlink(missing_ok=True)
    if not token.exists() or state == "unfinished":
        issue_token(delivery, name, token)
    if not (phone / "phone.toml").exists():
        settings = PhoneSettings(
            gateway=endpoint(address, server.gateway_port),
            delivery=endpoint(address, server.delivery_port),
        )
        content = tomli_w.dumps(settings.model_dump(by_alias=True))
        write_atomic(phone / "phone.toml", content.encode())
