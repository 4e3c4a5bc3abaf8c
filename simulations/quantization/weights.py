"""Pretrained weights if they are available without a network, otherwise random ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision

from common.backbone.architectures import architecture
from common.backbone.weights import load_weights

__all__ = ["Found", "at_hand"]


@dataclass(frozen=True)
class Found:
    """Weights of one backbone.

    Attributes:
        name: their name for ``load_weights``.
        label: their source.
        pretrained: whether they are pretrained. With random weights, sizes and speed can be
            measured, but not accuracy.
    """

    name: str
    label: str
    pretrained: bool


def at_hand(arch: str, given: str) -> Found:
    """Find a backbone's weights; nothing is downloaded unless it is named.

    Args:
        arch: a key of ``ARCHITECTURES``.
        given: see ``load_weights``; "": the available ones.

    Raises:
        BackboneError: the named weights cannot be used.
        MissingExtraError: the package that holds the embedded weights is not installed.
    """
    name = given or _offline(arch)
    return Found(name, load_weights(arch, name).label, name != "random")


def _offline(arch: str) -> str:
    row = architecture(arch)
    if row.embedded:
        return "imagenet"  # from a package
    if not row.enum:
        return "random"
    weights = getattr(torchvision.models, row.enum).DEFAULT
    file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    return "imagenet" if file.exists() else "random"
