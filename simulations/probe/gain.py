"""What one head gains over another on the same images, with the interval that chance allows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Gain", "paired_gain"]

_Z = 1.96


@dataclass(frozen=True)
class Gain:
    """A difference of two accuracies.

    Attributes:
        value: in [-1, 1].
        margin: half of its 95% interval.
    """

    value: float
    margin: float

    @property
    def is_sure(self) -> bool:
        """Whether the whole interval lies above 0."""
        return self.value > self.margin

    def __str__(self) -> str:
        low, high = self.value - self.margin, self.value + self.margin
        return f"{_points(self.value)} points (95% interval {_points(low)} to {_points(high)})"


def _points(share: float) -> str:
    return f"{round(100 * share, 1) + 0.0:+.1f}"  # never -0.0


def paired_gain(before: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_]) -> Gain:
    """The gain of the second head over the first.

    Images that both get right or wrong cancel out, so it is sharper than the difference of two
    intervals.

    Args:
        before: bool (n,), which images the first head gets right.
        after: the same of the second.
    """
    difference = after.astype(np.float64) - before
    deviation = float(difference.std())
    return Gain(float(difference.mean()), _Z * deviation / len(difference) ** 0.5)
