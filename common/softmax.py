"""The tensor code of head training: loss, gradient and step of softmax cross-entropy.

Written in closed form, without autograd, so that the very same loss and gradient are here and,
compiled by TorchScript, on a phone (``server/export/device_model``).
"""

# No `from __future__ import annotations`: TorchScript cannot read annotations that are strings.

import torch
from torch import Tensor

__all__ = ["rows_of_norm", "sgd_step", "softmax_gradient", "softmax_loss"]


def rows_of_norm(x: Tensor, norm: float) -> Tensor:
    """Examples whose features all have the same norm, and no bias; zeros stay zeros.

    Args:
        x: float (n, d + 1), features and a constant 1.
        norm: of each row, > 0.

    Returns:
        (n, d + 1), dtype of x; the last column is 0.
    """
    lengths = x[:, :-1].to(torch.float64).square().sum(dim=1, keepdim=True).sqrt()
    factors = torch.where(lengths > 0, norm / lengths, 0.0).to(x.dtype)
    scaled = x * factors
    scaled[:, -1] = 0
    return scaled


def sgd_step(x: Tensor, labels: Tensor, matrix: Tensor, lr: float) -> tuple[Tensor, Tensor]:
    """One plain step of SGD on a batch.

    Args:
        x: float (n, d + 1), features and a constant 1.
        labels: int64 (n,), in [0, K).
        matrix: float (K, d + 1), weight and bias; not changed.
        lr: learning rate.

    Returns:
        The loss of ``matrix``, and the matrix after the step.
    """
    loss, gradient = softmax_gradient(x, labels, matrix)
    return loss, matrix - lr * gradient


def softmax_gradient(x: Tensor, labels: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of a linear softmax classifier and its gradient.

    Args:
        x: float (n, d + 1), features and a constant 1.
        labels: int64 (n,), in [0, K).
        matrix: float (K, d + 1), weight and bias.

    Returns:
        The loss, a scalar, and the gradient (K, d + 1): ``(softmax(x W^T) - Y)^T x / n``.
    """
    log_p = torch.log_softmax(x @ matrix.t(), dim=1)
    picked = log_p.gather(1, labels.unsqueeze(1))
    residual = log_p.exp()
    residual.scatter_add_(1, labels.unsqueeze(1), torch.full_like(picked, -1.0))
    return -picked.mean(), residual.t() @ x / x.shape[0]


def softmax_loss(x: Tensor, labels: Tensor, matrix: Tensor) -> Tensor:
    """The mean cross-entropy alone, a scalar."""
    log_p = torch.log_softmax(x @ matrix.t(), dim=1)
    return -log_p.gather(1, labels.unsqueeze(1)).mean()
