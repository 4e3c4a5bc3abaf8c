"""Put a file up for devices."""

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
    """Where a delivery folder keeps what is published."""
    return folder / "artifacts"


@dataclass(frozen=True)
class Candidate:
    """A file that is to become the newest version on a shelf.

    Attributes:
        source: the file.
        shelf: of all its versions.
        kind: what it is.
        card: as JSON; empty for a backbone.
        fingerprint: of the backbone.
        sha256: of the file, as it was when it was looked at.
        least: the lowest number that a new version of it may get.
    """

    source: Path
    shelf: Path
    kind: Kind
    card: str
    fingerprint: str
    sha256: str
    least: int = 1

    def newest(self) -> Artifact | None:
        """The newest version, if it is this file already, undamaged."""
        known = known_versions(self.shelf)
        if not known:
            return None
        try:
            artifact = read_artifact(self.shelf, known[-1])
        except DeliveryError:
            return None  # damaged: what is published after it is what devices get
        if (artifact.sha256, artifact.card) != (self.sha256, self.card):
            return None
        return None if artifact.damage(artifact.path(self.shelf)) else artifact

    def next(self) -> Artifact:
        """What it becomes if nothing else is published before."""
        version = max(max(known_versions(self.shelf), default=0) + 1, self.least)
        size = self.source.stat().st_size
        return Artifact(self.shelf.name, version, size, self.sha256, self.card)

    def statement(self, artifact: Artifact, created: int, expires: int) -> Statement:
        """What is signed of it as this version."""
        return artifact.statement(self.kind, self.fingerprint, created, expires)


@dataclass(frozen=True)
class Release:
    """What putting a file up came to.

    Attributes:
        artifact: the newest version now.
        is_new: whether it was not before.
    """

    artifact: Artifact
    is_new: bool


Sign = Callable[[Candidate, Artifact], Signed]
"""Has a version signed, or says why not by an error."""


def exported(source: Path, folder: Path, *, name: str) -> Candidate:
    """An exported file, to be published.

    Args:
        source: the file; one that is not TorchScript has its card beside it.
        folder: of the delivery.
        name: what devices ask for.

    Raises:
        DeliveryError: not a name, or no card.
        ExportError: the file is damaged, or not an export.
    """
    shelf = shelf_of(artifacts_of(folder), name)
    sha256 = sha256_file(source)
    card = _card(source, sha256)
    return Candidate(source, shelf, "model", card.to_json(), card.fingerprint, sha256)


def earlier(folder: Path, *, name: str, version: int) -> Candidate:
    """A version that was published before, to be published again: devices never go back by number.

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
    """Make a candidate the newest version, whole or not at all.

    If it is that already, only its signature is renewed. Two at once get two versions.

    Args:
        candidate: what.
        sign: has it signed; None: nobody vouches for it.

    Raises:
        DeliveryError: the file changed meanwhile.
        SignatureError: from ``sign``.
        OSError: as the operating system says (disk full, no permission); nothing is left.
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
            # Or the card could be that of another file.
            if problem := artifact.damage(copy):
                raise DeliveryError(
                    f"{candidate.source} changed while it was being published, try again "
                    f"({problem})"
                )
            artifact.describe(folder)
    return Release(artifact, is_new=True)


def tidy(shelves: Path) -> None:
    """Remove what publishes that were killed had begun, and leave alone one that is at work.

    Args:
        shelves: folder of them; need not be there.
    """
    for shelf in shelves.glob("[!.]*"):
        with suppress(BlockingIOError), _alone(shelf, fcntl.LOCK_NB):
            _tidy(shelf)


def _tidy(shelf: Path) -> None:
    for place in (shelf, *(shelf / str(version) for version in known_versions(shelf))):
        remove_temporary(place)


@contextmanager
def _alone(shelf: Path, how: int = 0) -> Iterator[None]:
    """Inside, no other process publishes on the shelf; one that was killed holds no lock.

    Raises:
        BlockingIOError: one does, and with ``LOCK_NB`` it is not waited for.
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
