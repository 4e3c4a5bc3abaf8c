"""Ridge regression that chooses its penalty itself, from the sums of all clients alone.

Generalized cross-validation (Golub, Heath and Wahba, Technometrics 1979): with ``r`` the summed
squares of the residuals and ``f`` the effective degrees of freedom, lambda minimises
``n r / (n - f)^2``. Labels are one-hot, so that their squares add up to n, and both follow from
``A = X^T X``, ``B = Y^T X`` and n: no client is asked anything more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from common.statistics import ridge

__all__ = ["Solution", "auto_ridge", "fixed_ridge"]

_Array = npt.NDArray[np.float64]

# Lambda is one of 10^(i/10): near its minimum the criterion is flat, and rounding errors of another
# machine's eigenvalues would else choose another number. A step changes accuracy by nothing.
_STEPS_PER_DECADE = 10
# The grid's ends, relative to the mean eigenvalue: weaker penalties are rounding errors beside the
# largest eigenvalue, stronger ones leave nothing of the features.
_WEAKEST, _STRONGEST = 1e-7, 1e4
# Where a head has nearly as many effective parameters as examples, the criterion is a ratio of two
# small numbers: with 500 drawings of 15 kinds and 672 features it took such a head, which had 42 %
# right instead of 51 %.
_MOST_FREEDOM = 0.7
# Of penalties that are equally good up to rounding errors, the strongest is taken.
_TIE = 1e-9


@dataclass(frozen=True, eq=False)
class Solution:
    """A ridge head and what is known of it.

    Attributes:
        matrix: W = B (A + lam I)^-1, float64 (K, D), weight and bias.
        lam: lambda, above 0.
        freedom: effective degrees of freedom, the trace of A (A + lam I)^-1; the mean leverage of
            the n examples is freedom / n.
        score: the criterion n r / (n - f)^2, an estimate of the mean squared error on new examples,
            summed over the classes.
        edge: at which end of the searched range lambda lies; "": inside.
    """

    matrix: _Array
    lam: float
    freedom: float
    score: float
    edge: Literal["", "weakest", "strongest"] = ""

    @property
    def metrics(self) -> dict[str, float]:
        """What was chosen, as metrics of a round; edge: -1 weakest, 1 strongest, 0 inside."""
        return {
            "ridge-lambda": self.lam,
            "ridge-freedom": self.freedom,
            "ridge-lambda-edge": {"weakest": -1.0, "": 0.0, "strongest": 1.0}[self.edge],
        }


@dataclass(frozen=True, eq=False)
class _Spectrum:
    """What the criterion needs of A, B and n.

    Attributes:
        values: eigenvalues of A that are no rounding errors, (r,).
        fitted: by eigenvector, how much of the labels' squares least squares explains, (r,).
        unexplained: the squares that least squares leaves.
        num_examples: n.
        mean: the mean eigenvalue of A.
    """

    values: _Array
    fitted: _Array
    unexplained: float
    num_examples: int
    mean: float

    def freedom(self, lam: float) -> float:
        return float((self.values / (self.values + lam)).sum())

    def score(self, lam: float) -> float:
        kept = lam / (self.values + lam)  # the share of each direction that stays a residual
        # Added up from what is left, not taken off n: so that nothing cancels out.
        left = self.num_examples - len(self.values) + kept.sum()
        residual = self.unexplained + (self.fitted * kept**2).sum()
        return float(self.num_examples * residual / left**2)


def auto_ridge(a: _Array, b: _Array, n: int) -> Solution:
    """The ridge head with the lambda that generalized cross-validation chooses.

    Args:
        a: float64 (D, D), X^T X of n examples.
        b: float64 (K, D), Y^T X with one-hot labels.
        n: number of examples, at least 1.

    Returns:
        The head, exactly that of ``fixed_ridge`` with the lambda that was chosen.
    """
    spectrum = _spectrum(a, b, n)
    grid = _grid(spectrum.mean)
    most = _MOST_FREEDOM * n
    scores = [spectrum.score(lam) if spectrum.freedom(lam) <= most else math.inf for lam in grid]
    i = max(i for i, score in enumerate(scores) if score <= min(scores) * (1 + _TIE))
    edge: Literal["", "weakest", "strongest"] = ""
    if i in (0, len(grid) - 1):
        edge = "strongest" if i else "weakest"
    return Solution(ridge(a, b, grid[i]), grid[i], spectrum.freedom(grid[i]), scores[i], edge)


def fixed_ridge(a: _Array, b: _Array, n: int, lam: float) -> Solution:
    """The ridge head with a given lambda above 0; the arguments are those of ``auto_ridge``."""
    spectrum = _spectrum(a, b, n)
    return Solution(ridge(a, b, lam), lam, spectrum.freedom(lam), spectrum.score(lam))


def _spectrum(a: _Array, b: _Array, n: int) -> _Spectrum:
    values, vectors = np.linalg.eigh(a)
    alive = values > max(float(values[-1]), 0.0) * len(values) * np.finfo(np.float64).eps
    # More eigenvalues than examples are rounding errors, too; the largest come last.
    alive[: max(len(values) - n, 0)] = False
    mean = max(float(np.trace(a)) / len(a), float(np.finfo(np.float64).tiny))
    values, vectors = values[alive], vectors[:, alive]
    fitted = np.square(b @ vectors).sum(axis=0) / values
    # With as many directions as examples every label is fitted.
    unexplained = max(float(n - fitted.sum()), 0.0) if len(values) < n else 0.0
    return _Spectrum(values, fitted, unexplained, n, mean)


def _grid(mean: float) -> list[float]:
    first = math.floor(math.log10(mean * _WEAKEST) * _STEPS_PER_DECADE)
    last = math.ceil(math.log10(mean * _STRONGEST) * _STEPS_PER_DECADE)
    return [10 ** (i / _STEPS_PER_DECADE) for i in range(first, last + 1)]
