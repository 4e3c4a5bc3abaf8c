"""Publish a file for devices."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from common.delivery.versions import (
    Artifact,
    fingerprint_of,
    known_versions,
    read_artifact,
    renew,
    shelf_of,
)
from common.errors import DeliveryError
from common.files import remove_temporary, sha256_file, write_folder
from common.signing.statement import Kind, Signed, Statement
from server.export.card import Card, read_card, read_card_beside

__all__ = [
    "Candidate",
    "Release",
    "Sign",
    "artifacts_of",
    "earlier",
    "exported",
    "publish_version",
    "tidy",
]


def artifacts_of(folder: Path) -> Path:
    """The folder of published files in a delivery folder."""
    return folder / "artifacts"


@dataclass(frozen=True)
class Candidate:
    """A file to publish as the newest version on a shelf.

    Attributes:
        source: the file.
        shelf: the folder of all its versions.
        kind: model or backbone.
        card: its card as JSON; empty for a backbone.
        fingerprint: the backbone's fingerprint.
        sha256: the file's SHA-256 at the time of reading.
        least: the lowest number that a new version may get.
    """

    source: Path
    shelf: Path
    kind: Kind
    card: str
    fingerprint: str
    sha256: str
    least: int = 1

    def newest(self) -> Artifact | None:
        """The newest version, if it already is this file and undamaged."""
        known = known_versions(self.shelf)
        if not known:
            return None
        try:
            artifact = read_artifact(self.shelf, known[-1])
        except DeliveryError:
            return None  # it is damaged; devices get the version published after it
        if (artifact.sha256, artifact.card) != (self.sha256, self.card):
            return None
        return None if artifact.damage(artifact.path(self.shelf)) else artifact

    def next(self) -> Artifact:
        """The artifact that it becomes if nothing else is published before."""
        version = max(max(known_versions(self.shelf), default=0) + 1, self.least)
        size = self.source.stat().st_size
        return Artifact(self.shelf.name, version, size, self.sha256, self.card)

    def statement(self, artifact: Artifact, created: int, expires: int) -> Statement:
        """The statement to sign for this version."""
        return artifact.statement(self.kind, self.fingerprint, created, expires)


@dataclass(frozen=True)
class Release:
    """The result of publishing a file.

    Attributes:
        artifact: the newest version now.
        is_new: whether this version is new.
    """

    artifact: Artifact
    is_new: bool


Sign = Callable[[Candidate, Artifact], Signed]
"""Returns a version's signature, or raises an error."""


def exported(source: Path, folder: Path, *, name: str) -> Candidate:
    """An exported file as a candidate.

    Args:
        source: the file; if it is not TorchScript, its card lies beside it.
        folder: the delivery folder.
        name: the name that devices ask for.

    Raises:
        DeliveryError: the name is not safe, or there is no card.
        ExportError: the file is damaged or is not an export.
    """
    shelf = shelf_of(artifacts_of(folder), name)
    sha256 = sha256_file(source)
    card = _card(source, sha256)
    return Candidate(source, shelf, "model", card.to_json(), card.fingerprint, sha256)


def earlier(folder: Path, *, name: str, version: int) -> Candidate:
    """An earlier version as a candidate. It gets a new number, as devices never go back to a lower.

    Raises:
        DeliveryError: there is no such version, or it is damaged.
    """
    shelf = shelf_of(artifacts_of(folder), name)
    artifact = read_artifact(shelf, version)
    if problem := artifact.damage(artifact.path(shelf)):
        raise DeliveryError(f"{artifact.path(shelf)} is damaged: {problem}")
    fingerprint = fingerprint_of(artifact)
    return Candidate(
        artifact.path(shelf), shelf, "model", artifact.card, fingerprint, artifact.sha256
    )


def publish_version(candidate: Candidate, sign: Sign | None = None) -> Release:
    """Publish a candidate as the newest version, completely or not at all.

    If it already is the newest version, only its signature is renewed. Two publishing processes at
    once make two versions.

    Args:
        candidate: the file to publish.
        sign: signs it; None: it stays unsigned.

    Raises:
        DeliveryError: the file changed meanwhile.
        SignatureError: raised by ``sign``.
        OSError: it cannot be written (disk full, no permission); nothing is left behind.
    """
    shelf = candidate.shelf
    shelf.mkdir(parents=True, exist_ok=True)
    tidy(shelf.parent)
    with _alone(shelf):
        _tidy(shelf)
        newest = candidate.newest()
        artifact = newest or candidate.next()
        signed = sign(candidate, artifact) if sign else None
        if newest is not None:
            return Release(renew(shelf, newest, signed) if signed else newest, is_new=False)
        artifact = replace(artifact, signed=signed)
        with write_folder(shelf / str(artifact.version)) as folder:
            copy = folder / artifact.name
            shutil.copyfile(candidate.source, copy)
            # Otherwise the card could be of another file.
            if problem := artifact.damage(copy):
                raise DeliveryError(
                    f"{candidate.source} changed while it was being published, try again "
                    f"({problem})"
                )
            artifact.describe(folder)
    return Release(artifact, is_new=True)


def tidy(shelves: Path) -> None:
    """Remove remains of killed publishing processes; those of a running one stay.

    Args:
        shelves: the folder of shelves; it need not exist.
    """
    for shelf in shelves.glob("[!.]*"):
        with suppress(BlockingIOError), _alone(shelf, fcntl.LOCK_NB):
            _tidy(shelf)


def _tidy(shelf: Path) -> None:
    for place in (shelf, *(shelf / str(version) for version in known_versions(shelf))):
        remove_temporary(place)


@contextmanager
def _alone(shelf: Path, how: int = 0) -> Iterator[None]:
    """Inside the block, no other process publishes on the shelf. A killed process holds no lock.

    Raises:
        BlockingIOError: another process does, and ``how`` is ``LOCK_NB``.
    """
    descriptor = os.open(shelf, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | how)
        yield
    finally:
        os.close(descriptor)


def _card(source: Path, sha256: str) -> Card:
    if source.suffix in (".pt", ".ptl"):
        return read_card(source)
    return read_card_beside(source, sha256)
