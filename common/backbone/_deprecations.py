"""Deprecation warnings of torch that this package accepts, each with a reason.

Eager quantization and TorchScript are deprecated in torch 2.14, but they are still the only way to
one int8 file that a phone runs. So the torch range is pinned to tested versions, and the warnings
are silenced here, around our own calls, and nowhere else.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

__all__ = ["ACCEPTED", "accepted_deprecations"]

# (start of the message as a regular expression, category, why it is accepted)
ACCEPTED: tuple[tuple[str, type[Warning], str], ...] = (
    (
        r"torch\.ao\.quantization is deprecated",
        DeprecationWarning,
        "its successor torchao (PT2E) cannot be saved as TorchScript",
    ),
    (
        r"torch\.quantize_per_tensor, torch\.quantize_per_channel and other quantized tensor",
        UserWarning,
        "quint8 and qint8 tensors are what a converted module computes with (pytorch#184982)",
    ),
    (
        r"`torch\.jit\.(script|save|load)` is deprecated",
        FutureWarning,
        "TorchScript is what ships",
    ),
    (
        r"Lite Interpreter is deprecated",
        Warning,  # FutureWarning or DeprecationWarning, by the function
        "PyTorch's runtime on phones loads nothing else of TorchScript",
    ),
    (
        r"must run observer before calling calculate_qparams",
        UserWarning,
        "blocks without a shortcut own an addition that never runs and is never observed",
    ),
)


@cache
def _spend_once_only_warning() -> None:
    # torch warns about quantized tensors once in a process, in the thread that makes one first.
    # From a thread of torch's own, the warning bypasses Python's filters and goes to standard
    # error.
    torch.quantize_per_tensor(torch.zeros(1), 1.0, 0, torch.quint8)


@contextmanager
def accepted_deprecations() -> Iterator[None]:
    """Silence exactly the warnings of ``ACCEPTED`` inside the block; not for use in threads."""
    with warnings.catch_warnings():
        for message, category, _ in ACCEPTED:
            warnings.filterwarnings("ignore", message, category)
        _spend_once_only_warning()
        yield
