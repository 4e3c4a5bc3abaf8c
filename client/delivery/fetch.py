"""Fetch the newest model: resumed where it broke off, checked, put into use at once."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from client.delivery.remote import DeliveryInterruptedError, Remote
from client.delivery.shelf import Shelf
from client.trust import Trust
from common.delivery.versions import Artifact, fingerprint_of
from common.delivery.wire import LEAST_BYTES
from common.errors import DeliveryError
from common.signing.statement import Statement

__all__ = ["Fetched", "fetch"]

logger = logging.getLogger("fedhead.delivery")

# Tries without a byte of progress, the pauses between them twice as long each time.
_TRIES = 6


class _Tries:
    """Pauses after failures, each twice as long; after progress the count begins again."""

    def __init__(self, sleep: Callable[[float], None]) -> None:
        self._sleep = sleep
        self._failures = 0

    def failed(self, exc: DeliveryInterruptedError, received: int = 0) -> None:
        if received >= LEAST_BYTES:
            self._failures = 0
        self._failures += 1
        if self._failures == _TRIES:
            raise exc
        # Devices that lost the same server do not all come back at the same moment.
        pause = 2**self._failures * random.uniform(0.5, 1)  # noqa: S311 - no secret
        logger.warning("%s; trying again in %.0f s", exc, pause)
        self._sleep(pause)


@dataclass(frozen=True)
class Fetched:
    """What a fetch came to.

    Attributes:
        version: in use now.
        model: what the app loads.
        received_bytes: of the file, over the wire, by this fetch.
        note: in words.
    """

    version: int
    model: Path
    received_bytes: int
    note: str


def fetch(
    remote: Remote,
    shelf: Shelf,
    *,
    keep: int,
    trust: Trust | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Fetched:
    """Bring a shelf up to the newest version.

    Args:
        remote: the server.
        shelf: of the model to fetch.
        keep: versions to keep, at least 2: one in use, one to roll back to.
        trust: what must have been signed, and by whom; None: nothing.
        sleep: between tries.

    Raises:
        DeliveryInterruptedError: the server cannot be reached for long.
        DeliveryError: the server refuses or is not to be trusted; the disk is full; the file is
            not what was promised, and then nothing of it is kept. What was in use stays, and
            another fetch goes on from what else had come.
        SignatureError: it is not signed as it must be; likewise.
        OSError: as the operating system says.
    """
    shelf.path.mkdir(parents=True, exist_ok=True)
    with shelf.locked():
        tries = _Tries(sleep)
        artifact = _latest(remote, shelf.path.name, tries)
        statement = _check(artifact, shelf, trust) if trust else None
        current = shelf.current
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
    """The statement that vouches for an artifact.

    Raises:
        SignatureError: there is none that holds, or the artifact is older than what was here.
    """
    statement = trust.check(artifact.signed, "model", str(artifact), shelf.in_use())
    artifact.check(statement, "model", fingerprint_of(artifact))
    return statement


def _latest(remote: Remote, name: str, tries: _Tries) -> Artifact:
    while True:
        try:
            return remote.latest(name)
        except DeliveryInterruptedError as exc:
            tries.failed(exc)


def _download(remote: Remote, artifact: Artifact, partial: Path, tries: _Tries) -> int:
    """Complete the partial file and check it; gives the bytes received."""
    try:
        with partial.open("a+b") as file:
            # Longer than promised: no beginning of this file.
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
        problem = f"{partial}: {exc.strerror or exc}; what has come is kept"
        raise DeliveryError(problem) from exc
    if end != artifact.size or digest.hexdigest() != artifact.sha256:
        partial.unlink()
        raise DeliveryError(
            f"{artifact} is refused and nothing kept of it: sha256 {digest.hexdigest()} of {end} "
            f"bytes, promised {artifact.sha256} of {artifact.size}; another fetch starts anew"
        )
    return end - start


def _receive(
    remote: Remote, artifact: Artifact, file: BinaryIO, digest: hashlib._Hash, tries: _Tries
) -> None:
    """Append what is missing of a file, or more than that, to it and to its digest."""
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
