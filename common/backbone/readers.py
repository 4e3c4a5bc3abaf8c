"""Conversion of the tensors in a package's file to those of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

__all__ = ["in_order"]


def in_order(own: Sequence[str], found: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The same tensors in the same order, under the names of another implementation."""
    return dict(zip(own, found.values(), strict=True))
