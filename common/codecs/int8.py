"""Eight bits a number: whole multiples of each row's own step, rounded at random.

A number is rounded up with the probability of its fraction, so that its mean is the number.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from common.codecs.codec import Array, Codec
from common.codecs.rows import joined, rows_of, split, width_of
from common.errors import ReplyError
from common.seeding import words
from common.types import FloatArray, Layout

__all__ = ["INT8"]

_Words = npt.NDArray[np.uint64]

_MOST = 127
_BLOCK = 1 << 16  # numbers at once: they fit into a core's cache


def _uniform(states: _Words | np.uint64, index: _Words) -> FloatArray:
    """Draws in [0, 1), float32: the upper 24 bits of each word, so that they are exact."""
    drawn = (words(states, index) >> np.uint64(40)).astype(np.float32)
    return drawn * np.float32(2.0**-24)


def _codes(rows: FloatArray, draws: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Scales (n,) and codes, whole numbers (n, width) in float32, of rows (n, width)."""
    scales = np.abs(rows).max(axis=1) / np.float32(_MOST)
    x = np.zeros_like(rows)
    np.divide(rows, scales[:, None], out=x, where=scales[:, None] > 0)
    down = np.floor(x)
    codes = down + (draws < x - down)
    return scales, np.clip(codes, -_MOST, _MOST)


def _encode(array: Array, seed: int) -> bytes:
    rows = rows_of(array)
    index = np.arange(rows.size, dtype=np.uint64).reshape(rows.shape)
    scales, codes = _codes(rows, _uniform(np.uint64(seed), index))
    return joined(scales, codes.astype(np.int8))


def _decode(payload: bytes, layout: Layout, _seed: int) -> Array:
    scales, tail = split(payload, layout, width_of(layout.shape))
    codes = np.frombuffer(tail, np.int8).reshape(len(scales), -1)
    if codes.min() < -_MOST:
        raise ReplyError(f"holds the code {codes.min()}, expected at least {-_MOST}")
    return _decoded(scales, codes).reshape(layout.shape)


def _decoded(scales: FloatArray, codes: npt.NDArray[np.generic]) -> FloatArray:
    with np.errstate(over="ignore"):  # whoever uses the numbers checks that they are finite
        return codes.astype(np.float32) * scales[:, None]


def _through(arrays: Array, seeds: _Words) -> Array:
    clients = np.ascontiguousarray(arrays, np.float32).reshape(len(arrays), -1)
    width = width_of(arrays.shape[1:])
    decoded = np.empty_like(clients)
    index = np.arange(clients.shape[1], dtype=np.uint64)
    size = max(_BLOCK // clients.shape[1], 1)
    for start in range(0, len(clients), size):
        block = slice(start, start + size)
        draws = _uniform(seeds[block, None], index)
        rows = clients[block].reshape(-1, width)
        scales, codes = _codes(rows, draws.reshape(rows.shape))
        # + 0 turns a code of -0 into the 0 that an int8 gives
        decoded[block] = _decoded(scales, codes + np.float32(0)).reshape(draws.shape)
    return decoded.reshape(arrays.shape)


INT8 = Codec("int8", _encode, _decode, carries="f", sized=True, through=_through)
