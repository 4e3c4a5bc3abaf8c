"""The versions of a model on a device, and the link to the current one.

Beside the versions (see common/delivery/versions) a shelf holds::

    current -> 3      link to the version in use; the app loads current/model.pt
    held              the version that was rolled back; it and older ones are not fetched again
    .3-SHA256.part    a download, under way or interrupted
    .lock             held by the process that changes the shelf
"""

from __future__ import annotations

import fcntl
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from client.trust import Trust
from common.delivery.versions import (
    Artifact,
    fingerprint_of,
    known_versions,
    read_artifact,
    renew,
    shelf_of,
)
from common.errors import DamagedError, DeliveryError, SignatureError
from common.files import write_folder
from common.readback import JsonFile

__all__ = ["Shelf", "shelves"]

logger = logging.getLogger("fedhead.delivery")

_HELD = JsonFile("version that a device rolled back")


class Shelf:
    """One model's versions on this device.

    Args:
        folder: the folder of all fetched models.
        name: the artifact's name.

    Raises:
        DeliveryError: the name is not safe.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.path = shelf_of(folder, name)
        self.model = self.path / "current" / name
        self._current = self.path / "current"
        self._held = self.path / "held"

    @contextmanager
    def locked(self) -> Iterator[Self]:
        """Keep other processes from changing the shelf inside the block.

        Raises:
            DeliveryError: another process is changing it, or there is no shelf. (A process that
                died holds no lock.)
        """
        if not self.path.is_dir():
            raise DeliveryError(f"{self.path}: nothing was fetched to there yet")
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise DeliveryError(f"{self.path}: another process is working there") from exc
            yield self

    @property
    def current(self) -> int:
        """The version in use; 0 if there is none."""
        try:
            return int(self._current.readlink().name)
        except FileNotFoundError:
            return 0
        except (OSError, ValueError) as exc:
            raise DeliveryError(f"{self._current} is not a link to a version") from exc

    def in_use(self) -> tuple[int, str]:
        """The version in use and its sha256; 0 and "" if there is none or it is damaged."""
        if not self.current:
            return 0, ""
        try:
            return self.current, read_artifact(self.path, self.current).sha256
        except DeliveryError:
            return 0, ""

    @property
    def held(self) -> int:
        """The newest version that was rolled back; 0 if none was."""
        try:
            return int(_HELD.read(self._held)["version"])
        except FileNotFoundError:
            return 0
        except DamagedError as exc:
            raise DeliveryError(str(exc)) from exc

    def partial(self, artifact: Artifact) -> Path:
        """The file of the version's download; other versions' partial files are removed."""
        path = self.path / f".{artifact.version}-{artifact.sha256}.part"
        for other in self.path.glob(".*.part"):
            if other != path:
                other.unlink()
        return path

    def intact(self, artifact: Artifact) -> bool:
        """Whether the version is here and undamaged."""
        return not artifact.damage(artifact.path(self.path))

    def install(self, artifact: Artifact, file: Path) -> None:
        """Move a checked file into a new version's folder."""
        with write_folder(self.path / str(artifact.version)) as folder:
            artifact.describe(folder)
            file.rename(folder / artifact.name)  # last, so that an earlier failure leaves it there

    def keep_signature(self, artifact: Artifact) -> None:
        """Keep the newest signed statement of an installed version."""
        if artifact.signed and artifact.signed != read_artifact(self.path, artifact.version).signed:
            renew(self.path, artifact, artifact.signed)

    def use(self, version: int) -> None:
        """Make a version the current one."""
        link = self.path / ".current"
        link.unlink(missing_ok=True)
        link.symlink_to(str(version))
        link.replace(self._current)

    def prune(self, keep: int) -> None:
        """Remove all but the newest versions; the current one and the one before it stay.

        Remains of a killed ``install`` or ``prune`` are removed too.
        """
        known = known_versions(self.path)
        before = [version for version in known if version < self.current]
        kept = {*known[-keep:], self.current, *before[-1:]}
        for version in known:
            if version not in kept:
                # A half-removed folder must not look like a version.
                (self.path / str(version)).rename(self.path / f".{version}.old")
        for path in self.path.glob(".[0-9]*"):
            if path.is_dir():
                shutil.rmtree(path)

    def roll_back(self, trust: Trust | None = None) -> Artifact:
        """Go back to the version before the current one.

        The version that was current is not fetched again; the next published one is.

        Args:
            trust: the keys that must have signed it; None: nothing need be signed. That it is
                older than one accepted before is the device's owner's will.

        Raises:
            DeliveryError: there is no earlier version that is undamaged and signed as it must be.
                Nothing has changed.
        """
        current = self.current
        if not current:
            raise DeliveryError(f"{self.path}: nothing was fetched to there yet")
        before = [version for version in known_versions(self.path) if version < current]
        if not before:
            raise DeliveryError(f"{self.path}: there is no earlier version than {current}")
        skipped = []
        for version in reversed(before):
            try:
                artifact = self._usable(version, trust)
            except (DeliveryError, SignatureError) as exc:
                skipped.append(f"version {version} is skipped: {exc}")
                continue
            for line in skipped:
                logger.warning("%s", line)
            # This comes first; a fetch between the two steps would find nothing to do.
            _HELD.write(self._held, {"version": max(self.held, current)})
            self.use(version)
            return artifact
        problems = "; ".join(skipped)
        raise DeliveryError(
            f"{self.path}: no earlier version than {current} can be used: {problems}"
        )

    def _usable(self, version: int, trust: Trust | None) -> Artifact:
        """An installed version that is undamaged, and signed and valid now if there are keys.

        Raises:
            DeliveryError: it is damaged.
            SignatureError: it is not signed as it must be.
        """
        artifact = read_artifact(self.path, version)
        if problem := artifact.damage(artifact.path(self.path)):
            raise DeliveryError(problem)
        if trust:
            statement = trust.keys.verify(artifact.signed, str(artifact))
            artifact.check(statement, "model", fingerprint_of(artifact))
        return artifact


def shelves(folder: Path) -> list[Shelf]:
    """The shelves of all models on this device that have a current version."""
    return [Shelf(folder, path.parent.name) for path in sorted(folder.glob("[!.]*/current"))]
