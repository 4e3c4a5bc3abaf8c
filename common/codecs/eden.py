"""Two bits a number: one of four levels after a random rotation. EDEN, arXiv 2108.08842.

A code's low bit says that the number is negative, its high bit that it is large.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from common.codecs.rotation import folded, rotating
from common.types import FloatArray

__all__ = ["EDEN", "LEVELS", "THRESHOLD"]

# The quantizer of a standard normal number with the least squared error and four levels: each level
# is the mean of its interval, and the threshold lies halfway. Lloyd 1982, Max 1960.
_SMALL, _LARGE = 0.4527800346, 1.5104176085
THRESHOLD = (_SMALL + _LARGE) / 2  # root mean squares
LEVELS = np.array([_SMALL, -_SMALL, _LARGE, -_LARGE], np.float32)


def _quantize(y: FloatArray) -> npt.NDArray[np.uint8]:
    rms = np.sqrt(folded(np.square(y, dtype=np.float64)) / len(y))
    large = np.abs(y) >= (THRESHOLD * rms).astype(np.float32)
    return (y < 0).view(np.uint8) | (large.view(np.uint8) << np.uint8(1))


EDEN = rotating(
    "eden",
    bits=2,
    quantize=_quantize,
    levels=LEVELS,
)
