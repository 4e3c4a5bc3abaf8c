"""One bit a number: the sign after a random rotation. DRIVE, arXiv 2105.08339."""

from __future__ import annotations

import numpy as np

from common.codecs.rotation import rotating

__all__ = ["DRIVE"]

DRIVE = rotating(
    "drive",
    bits=1,
    quantize=lambda y: (y < 0).view(np.uint8),
    levels=np.array([1, -1], np.float32),
)
