"""Local training of ONE head, step by step: the reference that all faster code is tested against.

McMahan et al., "Communication-efficient learning of deep networks from decentralized data"
(arXiv 1602.05629); the proximal term is FedProx's (arXiv 1812.06127), the constant correction
SCAFFOLD's (arXiv 1910.06378). Adam is that of arXiv 1412.6980, AdamW of 1711.05101.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.evaluation import single_thread
from common.softmax import softmax_gradient, softmax_loss
from common.types import IntArray, LocalTraining

__all__ = ["Gradient", "LocalResult", "Terms", "train_head"]

Gradient = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Of a batch's loss (K, d + 1), from x (n, d + 1), labels (n,), the head and the global head."""

# torch.optim's defaults.
_BETAS, _EPSILON = (0.9, 0.999), 1e-8


@dataclass(frozen=True, eq=False)
class LocalResult:
    """What local training gave.

    Attributes:
        delta: (K, d + 1), local minus global, dtype of the input.
        loss_before: mean cross-entropy of the global head on the client's examples.
        loss_after: the same of the local head.
        steps: taken.
    """

    delta: Tensor
    loss_before: float
    loss_after: float
    steps: int


@dataclass(frozen=True, eq=False)
class Terms:
    """What a plan, or a user, makes of each gradient.

    Attributes:
        mu: proximal coefficient.
        correction: (K, d + 1), added to it.
        preconditioner: P (d + 1, d + 1), multiplies the data's gradient alone, so that decay,
            proximal term and correction keep their meaning in weight space.
        gradient: of what is minimised in place of the cross-entropy, see common.local_loss.
    """

    mu: float = 0.0
    correction: Tensor | None = None
    preconditioner: Tensor | None = None
    gradient: Gradient | None = None


def train_head(
    x: Tensor,
    labels: Tensor,
    start: Tensor,
    training: LocalTraining,
    orders: Sequence[IntArray],
    terms: Terms = Terms(),
) -> LocalResult:
    """Minimise the softmax cross-entropy from ``start`` for ``training.local_epochs`` epochs.

    With ``g = grad P + weight_decay w + mu (w - start) + correction`` a step of SGD is
    ``v <- momentum v + g; w <- w - lr v``. Adam and AdamW are those of torch.optim with its
    defaults, applied to this g; AdamW's decay is not in it. Their moments begin at zero in each
    call, so that a client carries nothing from one round to the next.

    Args:
        x: float32 or float64 (n, d + 1), features and a constant 1.
        labels: int64 (n,).
        start: (K, d + 1), the global head; not changed.
        training: hyperparameters.
        orders: for each epoch, int64 (n,): the order of visits.
        terms: what the plan adds.

    Raises:
        ConfigError: a loss of the user's own that is none.
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
    w, steps = start, 0
    is_sgd = training.optimizer == "sgd"
    optimizer = _Sgd(training, start) if is_sgd else _Adam(training, start)
    for order in orders[: training.local_epochs]:
        for batch in torch.split(torch.from_numpy(order), training.batch_size):
            if terms.gradient is None:
                _, direction = softmax_gradient(x[batch], labels[batch], w)
            else:
                direction = terms.gradient(x[batch], labels[batch], w, start)
            if terms.preconditioner is not None:
                direction = direction @ terms.preconditioner
            pull = [*optimizer.pull(w), *_pull(terms, w, start)]
            if pull:
                direction = direction + torch.stack(pull).sum(0)
            w = optimizer.step(w, direction)
            steps += 1
    return LocalResult(
        delta=w - start,
        loss_before=float(softmax_loss(x, labels, start)),
        loss_after=float(softmax_loss(x, labels, w)),
        steps=steps,
    )


def _pull(terms: Terms, w: Tensor, start: Tensor) -> list[Tensor]:
    """What the plan adds to each gradient."""
    parts = [terms.mu * (w - start)] if terms.mu else []
    return parts if terms.correction is None else [*parts, terms.correction]


class _Sgd:
    """Heavy-ball momentum, whose velocity is the direction of the last step."""

    def __init__(self, training: LocalTraining, start: Tensor) -> None:
        self._training, self._velocity = training, torch.zeros_like(start)

    def pull(self, w: Tensor) -> list[Tensor]:
        """What it adds to the gradient."""
        training = self._training
        parts = [training.momentum * self._velocity] if training.momentum else []
        return [*parts, training.weight_decay * w] if training.weight_decay else parts

    def step(self, w: Tensor, direction: Tensor) -> Tensor:
        """The head after a step."""
        self._velocity = direction
        return w - self._training.lr * direction


class _Adam:
    """Adam, or AdamW, whose decay goes past the moments."""

    def __init__(self, training: LocalTraining, start: Tensor) -> None:
        self._training, self._steps = training, 0
        self._mean, self._square = torch.zeros_like(start), torch.zeros_like(start)

    def pull(self, w: Tensor) -> list[Tensor]:
        """What it adds to the gradient."""
        decay = self._training.weight_decay if self._training.optimizer == "adam" else 0.0
        return [decay * w] if decay else []

    def step(self, w: Tensor, direction: Tensor) -> Tensor:
        """The head after a step."""
        training, (first, second) = self._training, _BETAS
        self._steps += 1
        self._mean = first * self._mean + (1 - first) * direction
        self._square = second * self._square + (1 - second) * direction**2
        mean = self._mean / (1 - first**self._steps)
        root = (self._square / (1 - second**self._steps)).sqrt()
        if training.optimizer == "adamw":
            w = w * (1 - training.lr * training.weight_decay)
        return w - training.lr * mean / (root + _EPSILON)
