"""Put a file up for devices."""

from __future__ import annotations

import errno
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from common.delivery.versions import Artifact, known_versions, shelf_of
from common.errors import DeliveryError
from common.files import sha256_file, sync
from server.card import Card, card_path, read_card

__all__ = ["artifacts_of", "publish"]


def artifacts_of(folder: Path) -> Path:
    """Where a delivery folder keeps what is published."""
    return folder / "artifacts"


def publish(source: Path, folder: Path, *, name: str) -> Artifact:
    """Put an exported file up as the next version, whole or not at all.

    Two publishes at once get two versions.

    Args:
        source: an exported file; one that is not TorchScript has its card beside it.
        folder: to serve from; made when missing.
        name: what devices ask for.

    Raises:
        DeliveryError: not a name, no card, or the file changed meanwhile.
        ExportError: the file is damaged, or not an export.
        OSError: as the operating system says (disk full, no permission); nothing is left.
    """
    shelf = shelf_of(artifacts_of(folder), name)
    sha256 = sha256_file(source)
    card = _card(source, sha256)
    shelf.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".publish.", dir=shelf))
    try:
        copy = temporary / name
        shutil.copyfile(source, copy)
        # Or the card could be that of another file.
        if sha256_file(copy) != sha256:
            raise DeliveryError(f"{source} changed while it was being published, try again")
        temporary.chmod(0o755)
        size = copy.stat().st_size
        return _take_version(temporary, Artifact(name, 1, size, sha256, card.to_json()))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _card(source: Path, sha256: str) -> Card:
    if source.suffix in (".pt", ".ptl"):
        return read_card(source)
    beside = card_path(source)
    try:
        card = Card.model_validate_json(beside.read_bytes())
    except FileNotFoundError as exc:
        raise DeliveryError(f"{source} has no card, expected {beside}") from exc
    except ValueError as exc:
        raise DeliveryError(f"{beside}: not a card ({str(exc).splitlines()[0]})") from exc
    if card.file is None or card.file.sha256 != sha256:
        raise DeliveryError(f"{beside} is the card of another file than {source}")
    return card


def _take_version(temporary: Path, artifact: Artifact) -> Artifact:
    """Rename to the first free number; a folder that is not empty cannot be renamed onto."""
    shelf = temporary.parent
    version = max(known_versions(shelf), default=0) + 1
    while True:
        artifact = replace(artifact, version=version)
        artifact.describe(temporary)
        for path in (*temporary.iterdir(), temporary):
            sync(path)
        try:
            temporary.rename(shelf / str(version))
        except OSError as exc:
            if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            version += 1
        else:
            sync(shelf)
            return artifact
