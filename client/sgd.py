"""Local training of ONE head by plain SGD: the reference that all faster code is tested against.

McMahan et al., "Communication-efficient learning of deep networks from decentralized data"
(arXiv 1602.05629); the proximal term is FedProx's (arXiv 1812.06127), the constant correction
SCAFFOLD's (arXiv 1910.06378).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.evaluation import single_thread
from common.softmax import sgd_step, softmax_loss
from common.types import IntArray, LocalTraining

__all__ = ["LocalResult", "Terms", "train_head"]


@dataclass(frozen=True, eq=False)
class LocalResult:
    """What local training gave.

    Attributes:
        delta: (K, d + 1), local minus global, dtype of the input.
        loss_before: mean cross-entropy of the global head on the client's examples.
        loss_after: the same of the local head.
        steps: SGD steps taken.
    """

    delta: Tensor
    loss_before: float
    loss_after: float
    steps: int


@dataclass(frozen=True, eq=False)
class Terms:
    """What a plan makes of each gradient.

    Attributes:
        mu: proximal coefficient.
        correction: (K, d + 1), added to it.
        preconditioner: P (d + 1, d + 1), multiplies the data's gradient alone, so that decay,
            proximal term and correction keep their meaning in weight space.
    """

    mu: float = 0.0
    correction: Tensor | None = None
    preconditioner: Tensor | None = None


def train_head(
    x: Tensor,
    labels: Tensor,
    start: Tensor,
    training: LocalTraining,
    orders: Sequence[IntArray],
    terms: Terms = Terms(),
) -> LocalResult:
    """Minimise the softmax cross-entropy from ``start`` for ``training.local_epochs`` epochs.

    A step is ``v <- momentum v + g; w <- w - lr v`` with
    ``g = grad P + weight_decay w + mu (w - start) + correction``.

    Args:
        x: float32 or float64 (n, d + 1), features and a constant 1.
        labels: int64 (n,).
        start: (K, d + 1), the global head; not changed.
        training: hyperparameters.
        orders: for each epoch, int64 (n,): the order of visits.
        terms: what the plan adds.
    """
    with single_thread():
        return _train(x, labels, start, training, orders, terms)


def _train(
    x: Tensor,
    labels: Tensor,
    start: Tensor,
    training: LocalTraining,
    orders: Sequence[IntArray],
    terms: Terms,
) -> LocalResult:
    w, velocity = start, torch.zeros_like(start)
    steps = 0

    def pull() -> Tensor | None:
        parts = []
        if training.momentum:
            parts.append(training.momentum * velocity)
        if training.weight_decay:
            parts.append(training.weight_decay * w)
        if terms.mu:
            parts.append(terms.mu * (w - start))
        if terms.correction is not None:
            parts.append(terms.correction)
        return torch.stack(parts).sum(0) if parts else None

    for order in orders[: training.local_epochs]:
        for batch in torch.split(torch.from_numpy(order), training.batch_size):
            _, w, velocity = sgd_step(
                x[batch], labels[batch], w, training.lr, terms.preconditioner, pull()
            )
            steps += 1
    return LocalResult(
        delta=w - start,
        loss_before=float(softmax_loss(x, labels, start)),
        loss_after=float(softmax_loss(x, labels, w)),
        steps=steps,
    )
