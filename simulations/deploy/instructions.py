"""What a deployment's folder holds for people and for systemd: its README and its units."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from string import Template

from common.files import write_atomic
from simulations.deploy.settings import ServerSettings, phone_folders

__all__ = ["DEVICE_UNITS", "INSTALLED", "SERVER_UNITS", "write_readme", "write_units"]

DEVICE_UNITS = ("fedhead-device.service", "fedhead-fetch.service", "fedhead-fetch.timer")
SERVER_UNITS = ("fedhead-server.service", "fedhead-delivery.service", "fedhead-gateway.service")
INSTALLED = "/var/lib/fedhead"
"""The place where systemd's units expect a folder."""


def write_readme(folder: Path, address: str, settings: ServerSettings) -> None:
    """Write a deployment's README.

    Args:
        folder: the deployment's folder.
        address: of the server.
        settings: the server's.
    """
    known = sorted(path.name for path in (folder / "devices").iterdir())
    phones = len(phone_folders(folder))
    values = {
        "address": address,
        "port": settings.port,
        "operator_port": settings.operator_port,
        "delivery_port": settings.delivery_port,
        "gateway_port": settings.gateway_port,
        "device": known[0] if known else "NAME",
        "devices": ", ".join(known) or "none",
        "phones": f"{phones:,}",
        "extras": "server,executorch" if phones else "server",
        "version": version("fedhead"),
    }
    text = _template("README.md").substitute(values)
    if not known:
        text = re.sub(r"^## Each device .*?(?=^## )", "", text, flags=re.DOTALL | re.MULTILINE)
    write_atomic(folder / "README.md", text.encode())


def write_units(place: Path, units: Sequence[str], *, folder: str, **values: str) -> None:
    """Write the systemd units of a server or device; they may write to one folder only."""
    sandbox = _template("sandbox").substitute(folder=folder)
    for unit in units:
        content = _template(unit).substitute(values, sandbox=sandbox)
        write_atomic(place / unit, content.encode())


def _template(name: str) -> Template:
    return Template((Path(__file__).parent / f"template.{name}").read_text(encoding="utf-8"))
