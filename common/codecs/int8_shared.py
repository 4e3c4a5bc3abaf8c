"""Whole multiples of one step that all clients share, so that their sums are multiples too.

Each number is rounded up with the probability of its fraction and is never cut off: its mean is the
number. A plan names the step: "int8-shared:0.001".

In float32, where numbers arrive, a multiple is exact up to one rounding: dividing by the step and
rounding gives the whole number back below 2^23 steps.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial
from typing import NoReturn

import numpy as np

from common.codecs.codec import Array, Codec
from common.codecs.zstd import deflated, inflated, planes, unplaned
from common.errors import ProtocolError, ReplyError
from common.seeding import fractions
from common.types import Layout

__all__ = ["INT8_SHARED", "with_step"]

_NAME = "int8-shared"
_DTYPES = {1: "i1", 2: "i2", 4: "i4"}  # by size; the array's largest number chooses
_LEAST, _MOST = 1e-30, 1e30


def _encode(step: float, array: Array, seed: int) -> bytes:
    x = array.astype(np.float64).reshape(-1) / step
    down = np.floor(x)
    drawn = fractions(np.uint64(seed), np.arange(x.size, dtype=np.uint64))
    codes = down + (drawn < x - down)
    top = float(np.abs(codes).max(initial=0))
    for dtype in _DTYPES.values():
        if top <= np.iinfo(dtype).max:
            return deflated(planes(codes.astype(dtype)))
    raise ReplyError(f"holds {np.abs(array).max():g}, more than 2^31 steps of {step!r}")


def _decode(step: float, payload: bytes, layout: Layout, _seed: int) -> Array:
    count = math.prod(layout.shape)
    body = inflated(payload, [size * count for size in _DTYPES])
    codes = unplaned(body, _DTYPES[len(body) // count])
    with np.errstate(over="ignore"):  # whoever uses the numbers checks that they are finite
        array: Array = (codes * step).astype(np.float32).reshape(layout.shape)
    return array


@lru_cache(maxsize=64)
def with_step(text: str) -> Codec:
    """The codec with a step, for example "0.001".

    Raises:
        ProtocolError: it is not a number as Python writes it, or is out of range. One step has one
            name, since the names of two plans are compared.
    """
    try:
        step = float(text)
    except ValueError:
        step = math.nan
    if not _LEAST <= step <= _MOST:
        raise ProtocolError(
            f"{_NAME}:{text} has no step: expected a number from {_LEAST:g} to {_MOST:g}, "
            f"for example {_NAME}:0.001"
        )
    if repr(step) != text:
        raise ProtocolError(f"{_NAME}:{text} must be written {_NAME}:{step!r}")
    return Codec(
        f"{_NAME}:{text}", partial(_encode, step), partial(_decode, step), carries="f", adds_up=True
    )


def _refuse(*_: object) -> NoReturn:
    raise ProtocolError(f"{_NAME} needs a step, for example {_NAME}:0.001")


INT8_SHARED = Codec(_NAME, _refuse, _refuse, carries="f", adds_up=True)
"""What holds for every step. It encodes nothing."""
