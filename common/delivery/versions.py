"""Versions of a file on disk, in the same form on server and device.

::

    model.pt/                 the shelf: one artifact, named as it is published
        1/  model.pt          the file
            artifact.json     version, size, sha256, card
            signed            statement and signature, if the deployment signs
        2/  ...

A version's folder appears complete, by one rename. Its content never changes, except that
``signed`` may be renewed.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

from common.errors import DamagedError, DeliveryError, SignatureError
from common.files import sha256_file, write_atomic
from common.readback import JsonFile, own_check
from common.signing.statement import NAME_PATTERN, Kind, Signed, Statement, read_signed

__all__ = [
    "MOST_VERSIONS",
    "Artifact",
    "check_name",
    "fingerprint_of",
    "known_versions",
    "read_artifact",
    "renew",
    "shelf_of",
]

MOST_VERSIONS = 999_999_999
"""The largest version number."""

_NAME = re.compile(NAME_PATTERN)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DESCRIPTION = "artifact.json"
_ARTIFACT = JsonFile("artifact.json of a published version", indent=1)
_SIGNED = "signed"
# Beside a version's file: the first two on server and device, the third on phones.
_TAKEN = (_DESCRIPTION, _SIGNED, "card.json")


def check_name(name: str, what: str = "artifact") -> str:
    """The name, if it is a safe file name on server and device.

    Raises:
        DeliveryError: it is not.
    """
    if not _NAME.fullmatch(name):
        raise DeliveryError(
            f"{name[:120]!r} cannot name a {what}: a letter or digit, then at most 99 letters, "
            "digits, '.', '_' or '-'"
        )
    return name


def shelf_of(folder: Path, name: str) -> Path:
    """The folder of an artifact's versions.

    Raises:
        DeliveryError: the name is not safe, or a version has a file of its own of that name.
    """
    if name in _TAKEN:
        raise DeliveryError(
            f"{name} cannot name an artifact: each version has such a file of its own"
        )
    return folder / check_name(name)


@dataclass(frozen=True)
class Artifact:
    """One version of a file.

    Attributes:
        name: the file's name.
        version: from 1 up to ``MOST_VERSIONS``.
        size: in bytes.
        sha256: the file's SHA-256, in hexadecimal.
        card: description of the model, as JSON; empty for a backbone.
        signed: statement and signature, if there are any; not yet checked.

    Raises:
        DeliveryError: impossible values, from a disk or a message.
    """

    name: str
    version: int
    size: int
    sha256: str
    card: str
    signed: Signed | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        problem = ""
        if not 1 <= self.version <= MOST_VERSIONS:
            problem = f"version {self.version}, expected 1 to {MOST_VERSIONS:,}"
        elif self.size < 0:
            problem = f"{self.size} bytes"
        elif not _SHA256.fullmatch(self.sha256):
            problem = f"sha256 {self.sha256[:80]!r}, expected 64 hexadecimal digits"
        if problem:
            raise DeliveryError(f"{self.name}: {problem}")

    def __str__(self) -> str:
        return f"{self.name} version {self.version}"

    def path(self, shelf: Path) -> Path:
        """The file's path on its shelf."""
        return shelf / str(self.version) / self.name

    def describe(self, version_folder: Path) -> None:
        """Write the file's description beside it."""
        facts = {name: value for name, value in vars(self).items() if name != "signed"}
        (version_folder / _DESCRIPTION).write_bytes(_ARTIFACT.pack(facts))
        if self.signed:
            (version_folder / _SIGNED).write_bytes(self.signed.to_file())

    def statement(self, kind: Kind, fingerprint: str, created: int, expires: int) -> Statement:
        """The statement that an operator signs for this version."""
        return Statement(
            kind=kind,
            name=self.name,
            version=self.version,
            size=self.size,
            sha256=self.sha256,
            card=hashlib.sha256(self.card.encode()).hexdigest(),
            fingerprint=fingerprint,
            created=created,
            expires=expires,
        )

    def check(self, statement: Statement, kind: Kind, fingerprint: str) -> None:
        """Check that a statement is about exactly this version.

        Raises:
            SignatureError: it is about something else; the error names the first difference.
        """
        mine = self.statement(kind, fingerprint, statement.created, statement.expires)
        for name, value in vars(mine).items():
            if (stated := getattr(statement, name)) != value:
                raise SignatureError(
                    f"{self} is refused: its {name} is {value}, but {stated} was signed"
                )

    @own_check("file of a published version")
    def damage(self, path: Path) -> str:
        """What is wrong with a file that should hold this version; empty if nothing is."""
        try:
            size = path.stat().st_size
            if size != self.size:
                return f"{size} bytes, expected {self.size}"
            found = sha256_file(path)
        except OSError as exc:
            return exc.strerror or str(exc)
        return "" if found == self.sha256 else f"sha256 {found}, expected {self.sha256}"


def fingerprint_of(artifact: Artifact) -> str:
    """The backbone's fingerprint in a model's card.

    Raises:
        DeliveryError: the card has none.
    """
    try:
        return str(json.loads(artifact.card)["fingerprint"])
    except (ValueError, LookupError, TypeError, RecursionError) as exc:
        raise DeliveryError(f"{artifact}: its card has no fingerprint") from exc


def known_versions(shelf: Path) -> list[int]:
    """Versions on a shelf, ascending; empty if there is no such shelf."""
    if not shelf.is_dir():
        return []
    names = [path.name for path in shelf.iterdir()]
    return sorted(int(name) for name in names if re.fullmatch(r"[1-9][0-9]{0,8}", name))


def read_artifact(shelf: Path, version: int) -> Artifact:
    """The description of one version on a shelf.

    Raises:
        DeliveryError: there is no such version, or its description is damaged.
    """
    path = shelf / str(version) / _DESCRIPTION
    try:
        artifact = Artifact(**_ARTIFACT.read(path), signed=_signed(path.with_name(_SIGNED)))
    except FileNotFoundError as exc:
        raise DeliveryError(f"{shelf.name}: there is no version {version}") from exc
    except (DamagedError, TypeError, ValueError) as exc:
        problem = exc if isinstance(exc, DamagedError) else DamagedError(str(path), str(exc))
        raise DeliveryError(str(problem)) from exc
    except OSError as exc:
        raise DeliveryError(f"{path} cannot be read ({exc.strerror})") from exc
    if (artifact.name, artifact.version) != (shelf.name, version):
        raise DeliveryError(f"{path} is damaged (it describes {artifact})")
    return artifact


def _signed(path: Path) -> Signed | None:
    try:
        return read_signed(path)
    except FileNotFoundError:
        return None
    except SignatureError as exc:
        raise DeliveryError(str(exc)) from exc


def renew(shelf: Path, artifact: Artifact, signed: Signed) -> Artifact:
    """Replace a version's signed statement, completely or not at all."""
    write_atomic(shelf / str(artifact.version) / _SIGNED, signed.to_file())
    return replace(artifact, signed=signed)
