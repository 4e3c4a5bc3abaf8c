"""Fetch the newest model: resume an interrupted download, check it, use it from then on."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import shutil
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from client.delivery.remote import DeliveryInterruptedError
from client.delivery.shelf import Shelf
from client.trust import Trust
from common.delivery.versions import Artifact, fingerprint_of
from common.delivery.wire import LEAST_BYTES
from common.errors import DeliveryError
from common.signing.statement import Statement

__all__ = ["Fetched", "Source", "fetch"]

logger = logging.getLogger("fedhead.delivery")

# Tries in a row without progress. Each pause between them is twice as long as the one before.
_TRIES = 6


class Source(Protocol):
    """Where models come from: the delivery service, or a gateway."""

    def latest(self, name: str) -> Artifact:
        """The newest version.

        Raises:
            DeliveryInterruptedError: another try may succeed.
            DeliveryError: the server refuses, is not trusted, or answers something else.
        """
        ...

    def download(self, artifact: Artifact, offset: int) -> Generator[bytes, None, None]:
        """The file's bytes from an offset on, as they arrive; fails as ``latest`` does."""
        ...


class _Tries:
    """Pauses after failures, each twice as long as the last; progress resets them."""

    def __init__(self, sleep: Callable[[float], None]) -> None:
        self._sleep = sleep
        self._failures = 0

    def failed(self, exc: DeliveryInterruptedError, received: int = 0) -> None:
        if received >= LEAST_BYTES:
            self._failures = 0
        self._failures += 1
        if self._failures == _TRIES:
            raise exc
        # Random, so that devices that lost the same server do not all return at the same moment.
        pause = 2**self._failures * random.uniform(0.5, 1)  # noqa: S311 - not a secret
        logger.warning("%s; trying again in %.0f s", exc, pause)
        self._sleep(pause)


@dataclass(frozen=True)
class Fetched:
    """The result of a fetch.

    Attributes:
        version: the version in use now.
        model: the file that the app loads.
        received_bytes: bytes of the file that this fetch received.
        note: the result in words.
    """

    version: int
    model: Path
    received_bytes: int
    note: str


def fetch(
    remote: Source,
    shelf: Shelf,
    *,
    keep: int,
    trust: Trust | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Fetched:
    """Update a shelf to the newest version.

    Args:
        remote: the server.
        shelf: the model's shelf.
        keep: number of versions to keep, at least 2: the current one and one to roll back to.
        trust: the keys that must have signed it; None: nothing need be signed.
        sleep: waits between tries.

    Raises:
        DeliveryInterruptedError: the server could not be reached in several tries.
        DeliveryError: the server refuses or is not trusted, the disk is full, or the file differs
            from what was promised. A wrong file is removed; otherwise the next fetch resumes the
            download. The current version stays.
        SignatureError: it is not signed as it must be; the current version stays.
        OSError: a file cannot be read or written.
    """
    shelf.path.mkdir(parents=True, exist_ok=True)
    with shelf.locked():
        tries = _Tries(sleep)
        artifact = _latest(remote, shelf.path.name, tries)
        statement = _check(artifact, shelf, trust) if trust else None
        current = shelf.current
        _check_reuse(artifact, *shelf.in_use())
        if artifact.version < current:
            note = f"the server has only version {artifact.version}"
            return Fetched(current, shelf.model, 0, note)
        if artifact.version <= shelf.held:
            note = f"version {artifact.version} was rolled back; waiting for a newer one"
            return Fetched(current, shelf.model, 0, note)
        received, partial = 0, shelf.partial(artifact)
        intact = shelf.intact(artifact)
        if not intact:
            try:
                received = _download(remote, artifact, partial, tries)
            except DeliveryError:
                if partial.exists() and not partial.stat().st_size:
                    partial.unlink()
                raise
        if trust and statement:
            trust.accept(statement)
        if intact:
            shelf.keep_signature(artifact)
        else:
            shelf.install(artifact, partial)
        shelf.use(artifact.version)
        shelf.prune(keep)
    note = "up to date" if intact and artifact.version == current else f"now {artifact}"
    return Fetched(artifact.version, shelf.model, received, note)


def _check(artifact: Artifact, shelf: Shelf, trust: Trust) -> Statement:
    """The valid signed statement about an artifact.

    Raises:
        SignatureError: there is none, or the artifact is older than one accepted before.
    """
    statement = trust.check(artifact.signed, "model", str(artifact), shelf.in_use())
    artifact.check(statement, "model", fingerprint_of(artifact))
    return statement


def _check_reuse(artifact: Artifact, version: int, sha256: str) -> None:
    """Refuse other bytes under the number in use; a server may have lost its versions."""
    if artifact.version == version and artifact.sha256 != sha256:
        raise DeliveryError(
            f"{artifact} is refused: it is in use here with other bytes (sha256 {sha256}), and a "
            f"version never changes; fedhead publish --version {version + 1} gives a new number"
        )


def _latest(remote: Source, name: str, tries: _Tries) -> Artifact:
    while True:
        try:
            return remote.latest(name)
        except DeliveryInterruptedError as exc:
            tries.failed(exc)


def _download(remote: Source, artifact: Artifact, partial: Path, tries: _Tries) -> int:
    """Complete the partial file and check it; returns the number of received bytes."""
    try:
        with partial.open("a+b") as file:
            # It is longer than promised, so it cannot be the beginning of this file.
            if file.tell() > artifact.size:
                file.truncate(0)
            start = file.tell()
            _check_space(partial.parent, artifact.size - start)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256")
            _receive(remote, artifact, file, digest, tries)
            file.flush()
            os.fsync(file.fileno())
            end = file.tell()
    except OSError as exc:
        problem = f"{partial}: {exc.strerror or exc}; the received part is kept"
        raise DeliveryError(problem) from exc
    if end != artifact.size or digest.hexdigest() != artifact.sha256:
        partial.unlink()
        raise DeliveryError(
            f"{artifact} is refused and removed: sha256 {digest.hexdigest()} of {end} bytes, "
            f"promised {artifact.sha256} of {artifact.size}; the next fetch starts again"
        )
    return end - start


def _receive(
    remote: Source, artifact: Artifact, file: BinaryIO, digest: hashlib._Hash, tries: _Tries
) -> None:
    """Append received bytes to a file and to its digest; a server may send too many."""
    while (offset := file.tell()) < artifact.size:
        try:
            with closing(remote.download(artifact, offset)) as pieces:
                for data in pieces:
                    file.write(data)
                    digest.update(data)
                    if file.tell() > artifact.size:
                        return
            if file.tell() < artifact.size:
                raise DeliveryInterruptedError(f"{artifact}: the stream ended early")
        except DeliveryInterruptedError as exc:
            file.flush()
            tries.failed(exc, file.tell() - offset)


def _check_space(folder: Path, needed: int) -> None:
    if (free := shutil.disk_usage(folder).free) < needed:
        raise DeliveryError(f"{folder}: {needed:,} bytes are needed, {free:,} are free")
