"""The head that a device was sent last, kept on its disk, so that it needs only what changed since.

The server says what the changes end with. So a file that was lost, is damaged, or is of a course
that the server has abandoned costs one more message, and never a wrong head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from common.codecs import find_codec
from common.errors import DamagedError, ProtocolError, ReplyError
from common.messages import HeadChanges, TrainRequest
from common.readback import ArraysFile
from common.types import FloatArray, Head

__all__ = ["with_head"]

_HEAD = ArraysFile("known head of a device")
_FILE = "known-head.safetensors"
_LARGEST = 2**26  # numbers of a head that begins at zero; no class table of a phone needs more


def with_head(request: TrainRequest, folder: Path) -> TrainRequest | None:
    """The request with its head, which the message brings or this device's disk and the changes.

    Args:
        request: the received request.
        folder: the run's folder on this device; keeps the head if changes will follow.

    Returns:
        None if the changes do not lead from what the device has to the server's head.

    Raises:
        ProtocolError: the head would be far too large.
    """
    changes = request.changes
    if changes is None and request.plan.downlink == "none":
        return request
    path = folder / _FILE
    head = request.head if changes is None else _changed(request, changes, path)
    if head is None:
        return None
    number = np.array(request.round_number, np.int64)
    with suppress(OSError):  # if it cannot be kept, the server sends the whole one again
        _HEAD.write(path, {"head": head.matrix, "round": number})
    return replace(request, head=head, changes=None)


def _changed(request: TrainRequest, changes: HeadChanges, path: Path) -> Head | None:
    codec = find_codec(request.plan.downlink)
    for number, held in _starts(changes, path):
        with suppress(ReplyError):  # a payload that cannot be read is worth as much as none
            if head := changes.apply(held, number, codec, request.seed):
                return head
    return None


def _starts(changes: HeadChanges, path: Path) -> Iterator[tuple[int, FloatArray]]:
    """Heads to which the changes may be added, with their rounds."""
    with suppress(DamagedError, OSError, KeyError, ValueError, TypeError, OverflowError):
        kept = _HEAD.read(path)
        yield int(kept["round"]), np.asarray(kept["head"], np.float32)
    if changes.base == 0:
        if math.prod(changes.shape) > _LARGEST:
            raise ProtocolError(f"head is {changes.shape}, expected fewer numbers")
        yield 0, np.zeros(changes.shape, np.float32)
