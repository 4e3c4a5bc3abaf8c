"""The check-ins of devices, in which they report their versions: one file per device."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from common.delivery.versions import MOST_VERSIONS, check_name
from common.errors import DamagedError, DeliveryError
from common.readback import JsonFile

__all__ = ["CheckIn", "check_ins", "forget", "save_check_in"]

logger = logging.getLogger("fedhead.delivery")

_CHECK_IN = JsonFile("check-in of a device")

_APP = re.compile(r"[A-Za-z0-9 ._+-]{0,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_ARTIFACTS = 20
_MOST_SECONDS = 1e11  # the year 5138


@dataclass(frozen=True)
class CheckIn:
    """A device's report. Only its form is checked, as a device may say anything.

    Attributes:
        app: program and version.
        authorities_sha256: SHA-256 of the authorities that it trusts.
        in_use: the current version of each artifact.
        time: in seconds since 1970, by the server's clock.

    Raises:
        DeliveryError: impossible values.
    """

    app: str
    authorities_sha256: str
    in_use: Mapping[str, int]
    time: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        problem = ""
        if not _APP.fullmatch(self.app):
            problem = f"app {self.app[:80]!r}, expected a name and a version"
        elif not _SHA256.fullmatch(self.authorities_sha256):
            problem = "authorities_sha256, expected 64 hexadecimal digits"
        elif len(self.in_use) > _MOST_ARTIFACTS:
            problem = f"{len(self.in_use)} artifacts in use, expected at most {_MOST_ARTIFACTS}"
        elif not all(1 <= version <= MOST_VERSIONS for version in self.in_use.values()):
            problem = f"a version in use is not between 1 and {MOST_VERSIONS:,}"
        elif not 0 <= self.time < _MOST_SECONDS:
            problem = f"time {self.time}"
        if problem:
            raise DeliveryError(problem)
        for name in self.in_use:
            check_name(name)


def _folder(folder: Path) -> Path:
    return folder / "check-ins"


def save_check_in(folder: Path, device: str, words: CheckIn) -> None:
    """Keep a device's check-in, in place of its last one."""
    path = _folder(folder) / f"{device}.json"
    _CHECK_IN.write(path, asdict(words), durable=False)


def check_ins(folder: Path) -> dict[str, CheckIn]:
    """The last check-in of each device; damaged ones are left out."""
    found = {}
    for path in sorted(_folder(folder).glob("[!.]*.json")):
        try:
            found[path.stem] = CheckIn(**_CHECK_IN.read(path))
        except DamagedError as exc:
            logger.warning("left out: %s", exc)
        except (TypeError, AttributeError, DeliveryError) as exc:
            logger.warning("left out: %s", DamagedError(str(path), str(exc)))
    return found


def forget(folder: Path, device: str) -> None:
    """Remove a device's check-in: with a new key, its name is another device's."""
    (_folder(folder) / f"{check_name(device)}.json").unlink(missing_ok=True)
