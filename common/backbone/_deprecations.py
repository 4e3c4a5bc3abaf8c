"""Deprecation warnings of torch that this package accepts, by message and with a reason.

Eager quantization and TorchScript are deprecated in torch 2.14 and still the only route to
one int8 file that a phone runs (shared/ONDEVICE.md), so the tested torch range is pinned and
the warnings are silenced here, around our own calls, and nowhere else.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["ACCEPTED", "accepted_deprecations"]

# (start of the message as a regular expression, category, why it is accepted)
ACCEPTED: tuple[tuple[str, type[Warning], str], ...] = (
    (
        r"torch\.ao\.quantization is deprecated",
        DeprecationWarning,
        "torchao's successor (PT2E) cannot be saved as TorchScript",
    ),
    (
        r"`torch\.jit\.\w+` is deprecated",
        DeprecationWarning,
        "TorchScript is what ships",
    ),
    (
        r"`torch\.jit\.\w+` is not supported in Python 3\.14\+",
        DeprecationWarning,
        "TorchScript is what ships",
    ),
    (
        r"Creating a (quantized )?[Tt]ensor .*will be removed in a future release",
        UserWarning,
        "quint8 and qint8 tensors are what a converted module computes with (pytorch#184982)",
    ),
)


@contextmanager
def accepted_deprecations() -> Iterator[None]:
    """Silence exactly the warnings of ``ACCEPTED`` inside the block."""
    with warnings.catch_warnings():
        for message, category, _ in ACCEPTED:
            warnings.filterwarnings("ignore", message, category)
        yield
