"""Torch's quantized engine, a setting of the whole process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from common.errors import BackboneError

__all__ = ["quantized_engine"]


@contextmanager
def quantized_engine(engine: str) -> Iterator[None]:
    """Set torch's quantized engine inside the block, and restore the old one afterwards.

    Convolutions read it when they are converted or loaded, additions on every call, so it must be
    set around both. The setting holds for the whole process, so threads that compute features
    together share one block.

    Raises:
        BackboneError: this torch has no such engine.
    """
    supported = torch.backends.quantized.supported_engines
    if engine not in supported or engine == "none":
        names = ", ".join(name for name in supported if name != "none")
        raise BackboneError(f"this torch has no quantized engine {engine!r}, only {names}")
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = engine
    try:
        yield
    finally:
        torch.backends.quantized.engine = before
