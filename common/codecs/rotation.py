"""Codecs that rotate each row at random and send a few bits for each rotated number.

A rotated row looks like normal noise, whatever the row was. So one table of levels fits all rows,
and with the right scale the decoded row is the sent one in the mean over rotations.
DRIVE (arXiv 2105.08339), EDEN (arXiv 2108.08842).

Differs from the papers: three to five rotations instead of one, each y = H S x with random signs S
and the Hadamard matrix H. A row with few entries takes only a few values after one, and what is
decoded is biased. The error of the mean over all signs, relative to the row, with one bit and 64
columns: 99.9, 14.6, 5.4, 2.0 and 0.7 % after one to five rotations for (1, 0.999, 0, ...), the
worst row that was found. Longer rows need fewer: 0.2 % after four with 256 columns; 0.6, 0.3 and
0.1 % after three with 512, 1,024 and 2,048.

All of it is float32 additions and signs in a fixed order, and sums in float64 by folding halves:
other languages get the same bits. The scale of a row is taken out first as a power of two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.codecs.codec import Array, Codec
from common.codecs.rows import joined, rows_of, split, width_of
from common.seeding import words
from common.types import FloatArray, Layout

__all__ = ["folded", "padded", "passes", "rotating"]

_Bytes = npt.NDArray[np.uint8]
_Doubles = npt.NDArray[np.float64]
_Words = npt.NDArray[np.uint64]
_Signs = list[npt.NDArray[np.uint32]]  # of each pass

_WORD = 64  # bits
_BLOCK = 1 << 18  # numbers that are rotated at once: memory stays small, and calls are few


def rotating(
    name: str, bits: int, quantize: Callable[[FloatArray], _Bytes], levels: FloatArray
) -> Codec:
    """A codec that rotates rows.

    Args:
        name: its name.
        bits: bits of a code: 1, 2, 4 or 8.
        quantize: from rotated rows, float32 (P, rows), to codes in [0, 2^bits).
        levels: float32 (2^bits,), what each code stands for, up to a row's scale.
    """
    rotation = _Rotation(bits, quantize, levels)
    return Codec(
        name,
        rotation.encode,
        rotation.decode,
        carries="f",
        sized=True,
        through=rotation.through,
    )


@dataclass(frozen=True, eq=False)
class _Rotation:
    bits: int
    quantize: Callable[[FloatArray], _Bytes]
    levels: FloatArray

    def encode(self, array: Array, seed: int) -> bytes:
        rows = rows_of(array)
        length = padded(rows.shape[1])
        scales = np.empty(len(rows), np.float32)
        packed = np.empty((len(rows), length * self.bits // 8), np.uint8)
        states = _states(np.array([seed], np.uint64), len(rows))
        for block in _blocks(len(rows), length):
            signs = _signs(states[block], length)
            scales[block], codes = self._codes(rows[block], signs)
            packed[block] = self._pack(codes)
        return joined(scales, packed)

    def decode(self, payload: bytes, layout: Layout, seed: int) -> Array:
        width = width_of(layout.shape)
        length = padded(width)
        row_bytes = length * self.bits // 8
        scales, codes = split(payload, layout, row_bytes)
        packed = np.frombuffer(codes, np.uint8).reshape(-1, row_bytes)
        rows = np.empty((len(scales), width), np.float32)
        states = _states(np.array([seed], np.uint64), len(rows))
        for block in _blocks(len(rows), length):
            signs = _signs(states[block], length)
            rows[block] = self._row(scales[block], self._unpack(packed[block]), signs, width)
        return rows.reshape(layout.shape)

    def through(self, arrays: Array, seeds: _Words) -> Array:
        rows = rows_of(arrays)
        width = rows.shape[1]
        length = padded(width)
        decoded = np.empty_like(rows)
        states = _states(seeds, len(rows) // len(seeds))
        for block in _blocks(len(rows), length):
            signs = _signs(states[block], length)
            decoded[block] = self._row(*self._codes(rows[block], signs), signs, width)
        return decoded.reshape(arrays.shape)

    def _codes(self, rows: FloatArray, signs: _Signs) -> tuple[FloatArray, _Bytes]:
        """Scales (n,) and codes (P, n) of rows (n, width)."""
        _, exponents = np.frexp(np.abs(rows).max(axis=1))
        # Exact up to one rounding of what underflows: float64 holds the product.
        x = np.zeros((len(signs[0]), len(rows)), np.float32)
        x[: rows.shape[1]] = np.ldexp(rows.T.astype(np.float64), -exponents)
        squares = folded(np.square(x, dtype=np.float64))
        y = x
        for flips in signs:
            _flip(y, flips)
            y = _hadamard(y)
        codes = self.quantize(y)
        products = folded(np.multiply(y, self.levels[codes], dtype=np.float64))
        ratios = np.zeros(len(rows), np.float64)
        np.divide(squares, products, out=ratios, where=squares > 0)
        # The power of two is exact, but for scales below 1e-37.
        return np.ldexp(ratios.astype(np.float32), exponents), codes

    def _row(self, scales: FloatArray, codes: _Bytes, signs: _Signs, width: int) -> FloatArray:
        """Rows (n, width) of scales (n,) and codes (P, n)."""
        y = self.levels[codes]
        for flips in reversed(signs):
            y = _hadamard(y)
            _flip(y, flips)
        with np.errstate(over="ignore"):  # whoever uses the numbers checks that they are finite
            x: FloatArray = y[:width] * scales
        return x.T

    def _pack(self, codes: _Bytes) -> _Bytes:
        bits = np.ascontiguousarray(codes.T)
        if self.bits > 1:
            bits = np.unpackbits(bits[..., None], axis=-1, count=self.bits, bitorder="little")
            bits = bits.reshape(len(bits), -1)
        return np.packbits(bits, axis=1, bitorder="little")

    def _unpack(self, packed: _Bytes) -> _Bytes:
        bits = np.unpackbits(packed, axis=1, bitorder="little")
        if self.bits > 1:
            grouped = bits.reshape(len(bits), -1, self.bits)
            bits = np.packbits(grouped, axis=-1, bitorder="little")[..., 0]
        return np.ascontiguousarray(bits.T)


def padded(width: int) -> int:
    """The smallest power of two from 64 that holds a row."""
    return max(_WORD, 1 << (width - 1).bit_length())


def passes(length: int) -> int:
    """The number of rotations of a padded row."""
    if length > 256:
        return 3
    return 4 if length == 256 else 5


def _states(seeds: _Words, rows: int) -> _Words:
    """The stream of each row of each array, one after the other."""
    return words(seeds[:, None], np.arange(rows, dtype=np.uint64)).reshape(-1)


def _blocks(rows: int, length: int) -> list[slice]:
    size = max(_BLOCK // length, 1)
    return [slice(start, start + size) for start in range(0, rows, size)]


def _signs(states: _Words, length: int) -> _Signs:
    """Signs of each pass, uint32 (P, n): the top bit is set where a number changes its sign."""
    count = passes(length) * (length // _WORD)
    drawn = words(states[:, None], np.arange(count, dtype=np.uint64)).astype("<u8", copy=False)
    bits = np.unpackbits(drawn.view(np.uint8), axis=1, bitorder="little")
    flips = np.ascontiguousarray(bits.T).astype(np.uint32) << np.uint32(31)
    return list(flips.reshape(passes(length), length, -1))


def _flip(x: FloatArray, signs: npt.NDArray[np.uint32]) -> None:
    bits = x.view(np.uint32)
    np.bitwise_xor(bits, signs, out=bits)


def _hadamard(x: FloatArray) -> FloatArray:
    """H x for each column of float32 (P, n), in butterflies. The argument's memory is used up."""
    out, step = np.empty_like(x), 1
    while step < len(x):
        a, b = _pairs(x, step)
        total, difference = _pairs(out, step)
        np.add(a, b, out=total)
        np.subtract(a, b, out=difference)
        x, out, step = out, x, 2 * step
    return x


def _pairs(x: FloatArray, step: int) -> tuple[FloatArray, FloatArray]:
    pairs = x.reshape(-1, 2, step * x.shape[1])
    return pairs[:, 0], pairs[:, 1]


def folded(x: _Doubles) -> _Doubles:
    """Sums of the columns of (P, n); the halves are added up until one row is left."""
    while len(x) > 1:
        half = len(x) // 2
        x = x[:half] + x[half:]
    total: _Doubles = x[0]
    return total
