"""What a codec is: an array to bytes and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.types import Layout

__all__ = ["Array", "Codec"]

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Codec:
    """A way to write one array, as a value of two pure functions.

    Both get the same seed, so that what is drawn at random need not travel.

    Attributes:
        name: as a plan has it.
        encode: (array, seed) to bytes; the array is finite, and of the dtype of its layout.
        decode: (bytes, layout, seed) to an array of this layout. It is given whatever came: what
            it raises costs the sender its round. It must take no more memory than the layout
            needs, whatever the bytes say.
        transparent: whether decoding gives back the very bits, and the length follows from the
            layout alone. A node then adds up arrays of its clients that it never makes.
    """

    name: str
    encode: Callable[[Array, int], bytes]
    decode: Callable[[bytes, Layout, int], Array]
    transparent: bool = False
