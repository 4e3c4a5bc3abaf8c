"""What a person is told of a run's privacy: one sentence, the same wherever it stands."""

from __future__ import annotations

import math

__all__ = ["NEIGHBOURS", "NOT_PRIVATE", "figure", "sentence"]

NEIGHBOURS = "one client added or removed"
"""Which two sets of clients the bound compares; how many are configured is public."""

NOT_PRIVATE = "no differential privacy"
"""Of a model whose training added no noise."""

_DIGITS, _ROUNDING = 3, 1e-6


def figure(epsilon: float) -> str:
    """A privacy loss with three digits, rounded up: nobody is told less than was lost.

    >>> figure(4.0), figure(3.991), figure(0.12345), figure(0.0), figure(float("inf"))
    ('4', '4', '0.124', '0', 'inf')
    """
    if not 0 < epsilon < math.inf:
        return f"{epsilon:g}"
    scale = 10.0 ** (_DIGITS - 1 - math.floor(math.log10(epsilon)))
    # What the last bits of a sum have too much is no loss.
    return f"{math.ceil(epsilon * scale * (1 - _ROUNDING)) / scale:g}"


def sentence(
    *,
    epsilon: float,
    delta: float,
    spent: float,
    simulated: bool,
    unit: str = "client",
    goes_on: bool = False,
) -> str:
    """The guarantee of what a run has released, whole.

    Args:
        epsilon: the budget.
        delta: of the bound, in (0, 1).
        spent: privacy loss of all releases so far, at this delta.
        simulated: whether the noise came from the run's seed, so that anyone can take it off.
        unit: what is protected.
        goes_on: whether the run began with another run's head, which may know its clients.

    >>> sentence(epsilon=4, delta=1e-5, spent=2.5, simulated=False)
    'Differentially private for each client, all its examples together: epsilon 2.5 spent of 4, \
delta 1e-05, one client added or removed.'
    """
    words = (
        f"Differentially private for each {unit}, all its examples together: epsilon "
        f"{figure(spent)} spent of {figure(epsilon)}, delta {delta:g}, {NEIGHBOURS}."
    )
    if goes_on:
        words += " What its first head, another run's, had cost is not counted."
    if simulated:
        words += " Simulated, not private: the noise comes from the run's seed."
    return words
