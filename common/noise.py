"""How far chance moves an accuracy, and how many examples an accuracy needs."""

from __future__ import annotations

__all__ = ["COUNTED_CLIENTS", "COUNTED_EXAMPLES", "margin", "wilson"]

COUNTED_EXAMPLES = 20
"""Test examples that a client's own accuracy needs; with fewer, one example is over 5 points."""

COUNTED_CLIENTS = 10
"""Number of such clients that a 10th percentile and a worst client need."""

_Z = 1.96


def wilson(accuracy: float, n: int) -> tuple[float, float]:
    """95 % interval of an accuracy.

    Wilson, "Probable inference, the law of succession, and statistical inference", 1927.

    Args:
        accuracy: measured, in [0, 1].
        n: examples that it was measured on, at least 1.

    >>> [round(end, 3) for end in wilson(0.9, 1000)]
    [0.88, 0.917]
    """
    middle = (accuracy + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z * (accuracy * (1 - accuracy) / n + _Z**2 / (4 * n**2)) ** 0.5 / (1 + _Z**2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def margin(accuracy: float, n: int) -> float:
    """Half of the ``wilson`` interval's width.

    >>> round(margin(0.9, 1000), 4)
    0.0186
    """
    low, high = wilson(accuracy, n)
    return (high - low) / 2
