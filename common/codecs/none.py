"""The codec that does not encode: an array's numbers in little-endian order."""

from __future__ import annotations

import math

import numpy as np

from common.codecs.codec import Array, Codec
from common.errors import ReplyError
from common.types import Layout

__all__ = ["NONE"]


def _encode(array: Array, _seed: int) -> bytes:
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _decode(payload: bytes, layout: Layout, _seed: int) -> Array:
    count = math.prod(layout.shape)
    dtypes = {4: "<f4"} if layout.kind == "f" else {4: "<u4", 8: "<u8"}
    for size, dtype in dtypes.items():
        if len(payload) == size * count:
            array: Array = np.frombuffer(payload, dtype).reshape(layout.shape)
            return array
    sizes = " or ".join(str(size * count) for size in dtypes)
    raise ReplyError(f"takes {len(payload)} bytes, expected {sizes}")


NONE = Codec("none", _encode, _decode, transparent=True)
