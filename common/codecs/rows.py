"""An array's rows, and the payloads of codecs that send a float32 scale for each of them."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from common.codecs.codec import Array
from common.errors import ReplyError
from common.types import FloatArray, Layout

__all__ = ["joined", "rows_of", "split", "width_of"]


def width_of(shape: tuple[int, ...]) -> int:
    """Numbers in a row: the last axis. An array of one axis is one row."""
    return shape[-1]


def rows_of(array: Array) -> FloatArray:
    """float32 (rows, width)."""
    return np.ascontiguousarray(array, np.float32).reshape(-1, width_of(array.shape))


def joined(scales: FloatArray, codes: npt.NDArray[np.int8] | npt.NDArray[np.uint8]) -> bytes:
    """A payload: float32 (rows,) in little-endian order, then each row's codes."""
    return scales.astype("<f4", copy=False).tobytes() + codes.tobytes()


def split(payload: bytes, layout: Layout, row_bytes: int) -> tuple[FloatArray, bytes]:
    """The reverse of ``joined``: the scales, and the codes of all rows.

    Raises:
        ReplyError: the length is wrong, or a scale is negative or not finite.
    """
    rows = math.prod(layout.shape) // width_of(layout.shape)
    if len(payload) != (want := rows * (4 + row_bytes)):
        raise ReplyError(f"takes {len(payload)} bytes, expected {want}")
    return _scales(payload[: 4 * rows]), payload[4 * rows :]


def _scales(payload: bytes) -> FloatArray:
    """float32 scales, from little-endian bytes.

    Raises:
        ReplyError: one is negative or not finite.
    """
    scales = np.frombuffer(payload, "<f4").astype(np.float32)
    if len(bad := scales[~((scales >= 0) & (scales < np.inf))]):
        raise ReplyError(f"has the scale {bad[0]:g}, expected a number from 0")
    return scales
