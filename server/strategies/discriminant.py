"""Linear discriminant analysis from summed statistics, and how far to shrink its covariance."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["discriminant", "equal_shrinkage"]

_Array = npt.NDArray[np.float64]


def discriminant(a: _Array, b: _Array, shrinkage: float) -> _Array:
    """The head (K, D) of ``lda`` from A = X^T X (D, D) and B = Y^T X (K, D), in float64."""
    counts, d = b[:, -1], a.shape[0] - 1
    present = counts > 0
    means, covariance, spread = _pooled(a, b)
    covariance = (1 - shrinkage) * covariance + shrinkage * spread * np.eye(d)
    weight = np.linalg.solve(covariance, means.T).T
    bias = -0.5 * (weight * means).sum(axis=1) + np.log(counts[present] / counts.sum())
    head = np.zeros_like(b)
    head[present, :-1], head[present, -1] = weight, bias
    head[~present, -1] = bias.min() - 100  # a class without examples is never predicted
    return head


def equal_shrinkage(a: _Array, b: _Array, lam: float) -> float:
    """The shrinkage that does what a ridge penalty does, in (0, 1].

    Ridge regression onto class labels finds the directions of a discriminant analysis whose
    scatter within classes, ``(N - K) S``, has lambda added to its diagonal (Hastie, Buja and
    Tibshirani, Annals of Statistics 1995). Up to a factor that is S shrunk by a with
    ``a / (1 - a) = lam / ((N - K) tr(S) / d)``.

    Args:
        a: float64 (D, D), X^T X.
        b: float64 (K, D), Y^T X.
        lam: penalty of the ridge regression, above 0.
    """
    present = b[:, -1] > 0
    _, _, spread = _pooled(a, b)
    within = max(float(b[:, -1].sum() - present.sum()), 1.0) * spread
    return float(lam / (lam + within))


def _pooled(a: _Array, b: _Array) -> tuple[_Array, _Array, float]:
    """Means of the classes that are there, their pooled covariance, and its mean eigenvalue."""
    counts = b[:, -1]
    present = counts > 0
    means = b[present, :-1] / counts[present, None]
    scatter = a[:-1, :-1] - (means * counts[present, None]).T @ means
    covariance = scatter / max(counts.sum() - present.sum(), 1.0)
    spread = max(float(np.trace(covariance)) / len(covariance), np.finfo(np.float64).tiny)
    return means, covariance, spread
