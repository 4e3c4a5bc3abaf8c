"""Which rows of a table nobody beats in accuracy and bytes at once."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["on_front"]


def on_front(costs: Sequence[float | None], values: Sequence[float]) -> list[bool]:
    """Whether each point lies on the Pareto front.

    It does if no other has as high a value for as low a cost, and is better in one of the two.
    Equal points are on it together, or not at all.

    Args:
        costs: of each point, such as bytes; finite. A point of an unknown one, None, is left out.
        values: of each point, such as accuracies; finite.

    >>> on_front([1, 2, 3, None], [0.5, 0.4, 0.9, 1.0])
    [True, False, True, False]
    """
    points = list(zip(costs, values, strict=True))
    known = [(cost, value) for cost, value in points if cost is not None]
    return [
        cost is not None
        and not any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in known)
        for cost, value in points
    ]
