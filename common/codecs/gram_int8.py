"""For sums over examples: a Gram matrix in about eight bits an entry, other integers as they are.

A Gram of n examples' features, sum [q 1]^T [q 1], is 1-D: its upper triangle. Its last column,
which holds n and the sums s, and its diagonal are sent exactly. So are the moments, 2-D. What is
left of G_ij is its difference from floor(s_i s_j / n), which is what the means explain. By Cauchy
and Schwarz it is at most sqrt(D_i D_j) + 1, with D_i the same difference on the diagonal. So the
whole number q_ij >= sqrt(D_i D_j) / 126 is a step in which it fits into 8 bits.

It is rounded at random to one of the two next numbers of its grid, floor(s_i s_j / n) + c q_ij, cut
off at 0, so that its mean is the entry itself and all that arrives is whole and not negative.
Everything that both sides compute is whole, but for the root, which IEEE 754 defines in every bit.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from common.codecs.codec import Array, Codec
from common.codecs.zstd import deflated, inflated, planes, unplaned
from common.errors import ReplyError
from common.seeding import fractions
from common.statistics import triangle_size
from common.types import IntArray, Layout

__all__ = ["GRAM_INT8"]

_SIZES = (1, 2, 4, 8)  # bytes of an integer; the largest number chooses
_EXACT, _GRAM = b"\0", b"\1"
_MOST = 127
_STEPS = 126  # one less: a difference may be one above the root
_LARGEST_SUM = 3_000_000_000  # products of two sums fit into 63 bits; 12 million examples of 255
_LARGEST_FEATURE = 255


def _encode(array: Array, seed: int) -> bytes:
    numbers = array.reshape(-1)
    width = _width(array.shape)
    # Sums that belong to no features, as from a client that lies, are sent as they are.
    if width and int(numbers.max()) < 1 << 62:
        gram, rest = numbers.astype(np.int64), _rest(width)
        grid = _grid(gram, width)
        if grid and (codes := _codes(gram[rest], *grid, seed)) is not None:
            return deflated(_GRAM + codes.tobytes() + _exactly(numbers[~rest]))
    return deflated(_EXACT + _exactly(numbers))


def _decode(payload: bytes, layout: Layout, _seed: int) -> Array:
    count, width = math.prod(layout.shape), _width(layout.shape)
    rest = _rest(width)
    num_codes = int(rest.sum())
    lengths = {1 + size * count for size in _SIZES}
    if width:
        lengths |= {1 + num_codes + size * (count - num_codes) for size in _SIZES}
    body = inflated(payload, lengths)
    how, body = body[:1], body[1:]
    if how == _EXACT:
        return _smallest(_numbers(body, count)).reshape(layout.shape)
    if how != _GRAM or not width:
        raise ReplyError(f"holds sums of the kind {how.hex()}, expected 00{' or 01' * (width > 0)}")
    codes = np.frombuffer(body[:num_codes], np.int8).astype(np.int64)
    gram = np.zeros(count, np.int64)
    gram[~rest] = _numbers(body[num_codes:], count - num_codes)
    grid = _grid(gram, width)
    if grid is None or codes.min() < -_MOST:
        raise ReplyError("holds sums that belong to no features")
    base, step = grid
    gram[rest] = np.maximum(base + codes * step, 0)
    return _smallest(gram)


def _width(shape: tuple[int, ...]) -> int:
    """D of a triangle with entries to encode, D (D + 1) / 2 numbers; 0 for other arrays."""
    if len(shape) != 1:
        return 0
    width = (math.isqrt(8 * shape[0] + 1) - 1) // 2
    return width if width > 2 and triangle_size(width) == shape[0] else 0


def _rest(width: int) -> npt.NDArray[np.bool_]:
    """Which entries of a triangle are neither on the diagonal nor in the last column."""
    i, j = np.triu_indices(width)
    rest: npt.NDArray[np.bool_] = (i != j) & (j != width - 1)
    return rest


def _grid(gram: IntArray, width: int) -> tuple[IntArray, IntArray] | None:
    """What the means explain of each of the rest, and its step; None: no features have such sums.

    Args:
        gram: int64 triangle; the rest of its entries is not read.
        width: D, above 2.
    """
    first = np.cumsum([0, *range(width, 1, -1)])  # of each row: the diagonal
    squares, sums = gram[first[:-1]], gram[first + np.arange(width)[::-1]]
    sums, n = sums[:-1], int(sums[-1])
    if n < 1 or sums.min() < 0 or sums.max() > _LARGEST_SUM:
        return None
    spread = squares - sums * sums // n
    if spread.min() < 0 or (squares > _LARGEST_FEATURE * sums).any():
        return None
    i, j = np.triu_indices(width - 1, 1)
    wide = np.maximum(spread, 1).astype(np.float64)
    step = np.ceil(np.sqrt(wide[i] * wide[j]) / _STEPS).astype(np.int64)
    return sums[i] * sums[j] // n, step


def _codes(
    entries: IntArray, base: IntArray, step: IntArray, seed: int
) -> npt.NDArray[np.int8] | None:
    """Codes of the rest of a triangle; None if they do not fit."""
    down = (entries - base) // step
    low, high = (np.maximum(base + (down + more) * step, 0) for more in (0, 1))
    drawn = fractions(np.uint64(seed), np.arange(len(entries), dtype=np.uint64))
    codes = down + (drawn * (high - low) < entries - low)
    return codes.astype(np.int8) if np.abs(codes).max() <= _MOST else None


def _exactly(numbers: npt.NDArray[np.generic]) -> bytes:
    top = int(numbers.max())
    size = next(size for size in _SIZES if top < 1 << 8 * size)
    return planes(numbers.astype(f"u{size}"))


def _numbers(body: bytes, count: int) -> npt.NDArray[np.integer]:
    """Numbers of ``_exactly``.

    Raises:
        ReplyError: there are more or fewer.
    """
    if (size := len(body) // count) * count != len(body) or size not in _SIZES:
        raise ReplyError(f"holds {len(body)} bytes for {count} numbers")
    return unplaned(body, f"u{size}")


def _smallest(numbers: npt.NDArray[np.integer]) -> npt.NDArray[np.unsignedinteger]:
    return numbers.astype(np.uint32 if int(numbers.max()) < 1 << 32 else np.uint64)


# Half a step at most. Whole steps above 1 are less than twice as wide as they need be; those of 1
# add no noise.
GRAM_INT8 = Codec("gram-int8", _encode, _decode, carries="u", rounding=1 / _STEPS)
