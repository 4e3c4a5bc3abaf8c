"""Pretrained weights where they can be had without a network, else random ones."""

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
        name: for ``load_weights``.
        label: where they come from.
        pretrained: with random weights sizes and speed can be measured, but no accuracy.
    """

    name: str
    label: str
    pretrained: bool


def at_hand(arch: str, given: str) -> Found:
    """Find a backbone's weights; nothing is downloaded unless it is asked for by name.

    Args:
        arch: a key of ``ARCHITECTURES``.
        given: see ``load_weights``; "" for what there is.

    Raises:
        BackboneError: weights that are named cannot be used.
        MissingExtraError: the package that holds the embedded ones is not installed.
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
