"""The type of a codec, which turns an array into bytes and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from common.types import Layout

__all__ = ["Array", "Codec", "Through"]

Array = npt.NDArray[np.generic]
Through = Callable[[Array, npt.NDArray[np.uint64]], Array]


@dataclass(frozen=True)
class Codec:
    """A way to write one array: two pure functions.

    Both get the same seed, so that random draws need not be sent.

    Attributes:
        name: its name in a plan.
        encode: from (array, seed) to bytes; the array is finite and has its layout's dtype.
        decode: from (bytes, layout, seed) to an array of this layout. The bytes are not to be
            trusted: if it raises, the sender's update is refused. Whatever the bytes say, it must
            not take more memory than the layout needs.
        transparent: whether decoding gives the same bits back and the length follows from the
            layout alone. Then a node may sum its clients' arrays without making each of them.
        carries: the arrays that it is for: floats, unsigned integers, or both. Others are sent as
            they are.
        sized: whether the length of its bytes follows from the layout alone.
        through: what ``decode`` gives of the bytes that ``encode`` makes, bit for bit, for arrays
            (m, ...) with m seeds at once; called with (arrays, seeds). Where a node hosts many
            clients, it saves making each one's bytes. Only for codecs with ``sized``.
        adds_up: whether the decoded numbers of all clients are whole multiples of one step.
        rounding: the largest standard deviation of the noise that it adds to an entry of a Gram
            matrix, as a share of the geometric mean of its two features' sums of squares around
            their means. Sums over examples pass no check that is tighter than that.
    """

    name: str
    encode: Callable[[Array, int], bytes]
    decode: Callable[[bytes, Layout, int], Array]
    transparent: bool = False
    carries: Literal["f", "u", "fu"] = "fu"
    sized: bool = False
    through: Through | None = None
    adds_up: bool = False
    rounding: float = 0.0
