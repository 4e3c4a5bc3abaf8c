"""Which blocks of a network give features. Imports no torch."""

from __future__ import annotations

from typing import Literal, get_args

from common.backbone.architectures import architecture
from common.errors import BackboneError

__all__ = ["NAMED_FEATURES", "Features", "NamedFeatures", "blocks_of"]

NamedFeatures = Literal["gap", "compact", "gap+mid"]
NAMED_FEATURES: tuple[NamedFeatures, ...] = get_args(NamedFeatures)

Features = NamedFeatures | tuple[int, ...]
"""Whose activations are averaged over space. "gap": the last layer's; "compact": those of the inner
blocks in the architecture's row, and layers that none of them needs are dropped; "gap+mid": those
of these blocks without the deepest, and the last layer's; or the numbers of blocks."""


def blocks_of(features: Features, arch: str, layers: int) -> tuple[int, ...]:
    """Numbers of the blocks, ascending; ``layers - 1`` is the last layer's.

    Args:
        features: the setting.
        arch: a key of ``ARCHITECTURES``; without inner blocks in its row, only the last layer is
            used unless blocks are listed.
        layers: how many layers follow each other in the network.

    Raises:
        BackboneError: the network has no block of this number.
    """
    inner, last = architecture(arch).inner, layers - 1
    if features == "gap":
        return (last,)
    if features == "compact":
        return inner or (last,)
    if features == "gap+mid":
        return (*inner[:-1], last)
    unknown = [block for block in features if not 0 <= block <= last]
    if unknown:
        raise BackboneError(
            f"backbone.features: {arch} has no block {unknown[0]}: its {layers} layers are "
            f"numbered from 0 to {last}"
        )
    return features
