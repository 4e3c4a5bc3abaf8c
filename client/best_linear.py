"""The best linear heads of all clients' examples in one place: ridge and logistic regression.

What a federated head is measured against, so both choose their own penalties: ridge regression by
generalized cross-validation (common.ridge), logistic regression by the loss on a fifth of the
examples. Which of the two counts as the centralized head is the accuracy on that fifth.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from common.datasets.split import stratified_split
from common.evaluation import Evaluation, evaluate, single_thread
from common.ridge import auto_ridge
from common.seeding import Purpose
from common.softmax import softmax_gradient
from common.statistics import feature_statistics, ridge
from common.types import FeatureSet, Head

__all__ = ["Pooled", "best_linear_heads"]

_HELD_OUT = 0.2
# Penalties relative to the mean squared length of an example: strong ones first, since each
# solution starts at the one before.
_PENALTIES = 10.0 ** np.arange(0, -3.5, -0.75)
# The penalty is chosen on so many examples at most: with more, it takes minutes.
_MOST_TO_CHOOSE = 2000
_STEPS, _ENOUGH = 40, 1e-5
# About the mean curvature of a softmax and a penalty in the middle, for the preconditioner, which
# changes no minimum.
_CURVATURE, _MIDDLE = 0.1, 10**-1.5


def best_linear_heads(
    features: FeatureSet, num_classes: int, *, ridge_lambda: float, seed: int
) -> dict[str, Head]:
    """The heads "ridge" and "logistic", and "centralized": the better one on the held-out fifth.

    Args:
        features: n >= 1 examples of all clients, labels in [0, num_classes).
        num_classes: K.
        ridge_lambda: penalty of the ridge head; 0: chosen from the sums.
        seed: the run's seed, for the examples that are held out.
    """
    train, held_out = _split(features, seed)
    every = Pooled(features, num_classes)
    part = Pooled(train, num_classes, every)
    lam, start, found = _choose(part, held_out)
    ridge_lambda = ridge_lambda or every.ridge_lambda()
    heads = {"ridge": every.ridge(ridge_lambda), "logistic": every.logistic(lam, start)}
    is_better = found.accuracy >= evaluate(part.ridge(ridge_lambda), held_out).accuracy
    return {**heads, "centralized": heads["logistic" if is_better else "ridge"]}


def _split(features: FeatureSet, seed: int) -> tuple[FeatureSet, FeatureSet]:
    keep, held_out = stratified_split(features.labels, _HELD_OUT, seed, Purpose.VALIDATION, 1)
    if not len(held_out):
        return features, features
    count = min(len(keep), _MOST_TO_CHOOSE)
    spread = np.linspace(0, len(keep) - 1, count).astype(np.int64)
    return features.select(keep[spread]), features.select(held_out)


def _choose(part: Pooled, held_out: FeatureSet) -> tuple[float, Head, Evaluation]:
    """The penalty of least loss on examples that are held out, its head, and how good that is."""
    head: Head | None = None
    best: tuple[float, Head, Evaluation] | None = None
    for lam in (_PENALTIES * part.mean_square).tolist():
        head = part.logistic(lam, head)
        found = evaluate(head, held_out)
        if best is not None and found.loss > best[2].loss:
            break  # still weaker ones fit their own examples even more closely
        best = lam, head, found
    if best is None:
        raise ValueError("no penalty to try")
    return best


class Pooled:
    """Examples in one place, for regressions on them.

    Args:
        features: n >= 1 examples, labels in [0, num_classes).
        num_classes: K.
        like: more of the same kind, whose preconditioner does as well.
    """

    def __init__(self, features: FeatureSet, num_classes: int, like: Pooled | None = None) -> None:
        sums = feature_statistics(features, num_classes)
        self._a, self._b = sums.in_feature_space(features.affine)
        self._x = torch.from_numpy(features.x)
        self._labels = torch.from_numpy(features.labels)
        self.mean_square = float(np.trace(self._a)) / len(features)
        if like is None:
            curvature = _CURVATURE * self._a / len(features)
            curvature += _MIDDLE * self.mean_square / len(features) * np.eye(len(curvature))
            self._root = torch.from_numpy(np.linalg.cholesky(curvature)).float()
        else:
            self._root = like._root

    def ridge(self, lam: float) -> Head:
        """Ridge regression with a penalty above 0."""
        return Head.from_matrix(ridge(self._a, self._b, lam))

    def ridge_lambda(self) -> float:
        """The penalty that generalized cross-validation chooses."""
        return auto_ridge(self._a, self._b, len(self._labels)).lam

    def logistic(self, lam: float, start: Head | None = None) -> Head:
        """Softmax regression: the W of least ``sum of losses + lam / 2 ||W||^2``, bias included.

        By L-BFGS (Liu and Nocedal, Mathematical Programming 1989) in coordinates in which the
        curvature is about the same in all directions: MobileNet's features differ by factors of
        thousands.

        Args:
            lam: > 0.
            start: a head that may lie near it.
        """
        n, (k, width) = len(self._labels), self._b.shape
        first = torch.zeros(k, width) if start is None else torch.from_numpy(start.matrix)
        root = self._root
        with single_thread():

            def head(point: Tensor) -> Tensor:
                solved: Tensor = torch.linalg.solve_triangular(root, point, upper=False, left=False)
                return solved

            def objective(point: Tensor) -> tuple[Tensor, Tensor]:
                w = head(point)
                loss, gradient = softmax_gradient(self._x, self._labels, w)
                slope = (gradient + lam / n * w).t()
                slope = torch.linalg.solve_triangular(root, slope, upper=False).t()
                return loss + lam / (2 * n) * (w * w).sum(), slope

            found = head(_minimum(first @ root, objective))
        return Head.from_matrix(found.numpy())


def _minimum(start: Tensor, objective: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """Where a smooth convex function, which gives its value and gradient, is least."""
    point = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [point], max_iter=_STEPS, tolerance_grad=1e-5, tolerance_change=_ENOUGH,
        history_size=20, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> float:
        value, point.grad = objective(point.detach())
        return float(value)

    optimizer.step(closure)  # type: ignore[no-untyped-call]  # torch has no types for it
    return point.detach()
