"""Finished models, as the operator published them, for phones to fetch."""

from __future__ import annotations

import logging
import threading
from functools import partial
from pathlib import Path

from client.gateway.backbones import Blobs, blob_in, blob_of
from common.delivery.versions import Artifact, known_versions, read_artifact, shelf_of
from common.errors import DeliveryError
from common.phones import phones_pb2 as pb
from common.phones.wire import LARGEST_MODEL
from common.signing.statement import Signed

__all__ = ["DamagedModelError", "Models", "NoModelError"]

logger = logging.getLogger("fedhead.gateway")


class NoModelError(DeliveryError):
    """Nothing that phones take is published under that name."""


class DamagedModelError(DeliveryError):
    """What is published cannot be read, or has changed since."""


class Models:
    """The published models.

    Args:
        folder: of their shelves.
        blobs: what phones fetch.
    """

    def __init__(self, folder: Path, blobs: Blobs) -> None:
        self._folder, self._blobs = folder, blobs
        self._cards: dict[str, pb.Blob] = {}
        self._said: dict[str, str] = {}
        self._lock = threading.Lock()

    def newest(self, name: str) -> pb.Model:
        """The newest version; its file and its card may be fetched from now on.

        Raises:
            NoModelError: there is none that phones take.
            DamagedModelError: it is damaged.
            DeliveryError: the name is no file's name.
        """
        shelf = shelf_of(self._folder, name)
        # Together, because another call may know of a newer version by now. A large file is read
        # once, however many phones ask for it at the same time.
        with self._lock:
            if not (known := known_versions(shelf)):
                raise NoModelError(f"nothing is published as {name}")
            try:
                return self._offered(read_artifact(shelf, known[-1]), shelf)
            except (DeliveryError, OSError) as exc:
                self._tell(name, str(exc))
                if isinstance(exc, NoModelError):
                    raise
                # The answer does not tell a phone the server's paths.
                raise DamagedModelError(f"{name} is damaged on the server") from exc

    def _offered(self, artifact: Artifact, shelf: Path) -> pb.Model:
        path = artifact.path(shelf)
        file = blob_in(path)
        if (file.sha256, file.size) != (artifact.sha256, artifact.size):
            raise DeliveryError(f"{path} is damaged: its SHA-256 is {file.sha256}")
        if file.size > LARGEST_MODEL:
            raise NoModelError(
                f"{artifact} has {file.size:,} bytes, but phones take at most {LARGEST_MODEL:,}"
            )
        self._blobs.offer_file(file.sha256, path)
        signed = artifact.signed or Signed(b"", b"")
        return pb.Model(
            name=artifact.name,
            version=artifact.version,
            file=file,
            card=self._card(artifact.name, artifact.card.encode()),
            statement=signed.statement,
            signature=signed.signature,
        )

    def _tell(self, name: str, words: str) -> None:
        """Log a model's problem, but not again as long as it stays the same."""
        if self._said.get(name) != words:
            logger.warning("%s", words)
        self._said[name] = words

    def _card(self, name: str, card: bytes) -> pb.Blob:
        """A version's card; that of the version before is not offered any more."""
        blob = blob_of(card)
        before = self._cards.pop(name, blob)
        if not blob.data:
            self._blobs.offer(blob.sha256, partial(bytes, card))
            self._cards[name] = blob
        if before is not blob:
            self._blobs.withdraw(before.sha256)
        return blob
