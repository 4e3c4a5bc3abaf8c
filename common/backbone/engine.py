"""Torch's quantized engine, which is one setting for the whole process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from common.errors import BackboneError

__all__ = ["quantized_engine"]


@contextmanager
def quantized_engine(engine: str) -> Iterator[None]:
    """Set torch's quantized engine inside the block, then put the old one back.

    Convolutions bind it when they are converted or loaded, additions ask for it on every
    call, so it is set around both. The setting is one for the whole process: threads that
    compute features together share one block.

    Raises:
        BackboneError: this torch has no such engine.
    """
    supported = torch.backends.quantized.supported_engines
    if engine not in supported or engine == "none":
        names = ", ".join(name for name in supported if name != "none")
        raise BackboneError(f"quantized engine {engine!r} is not in this torch, which has {names}")
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = engine
    try:
        yield
    finally:
        torch.backends.quantized.engine = before
