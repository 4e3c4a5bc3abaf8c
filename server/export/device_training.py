"""One step of training as ``client/sgd.py`` takes it, compiled by TorchScript."""

# No `from __future__ import annotations`: TorchScript cannot read annotations that are strings.

import torch
from torch import Tensor

from server.export.device_checks import check_array

__all__ = ["check_terms", "step_direction"]


def check_terms(
    rates: list[float], correction: Tensor, preconditioner: Tensor, shape: list[int]
) -> None:
    """Refuse terms that no round has.

    Args:
        rates: momentum, weight decay and mu.
        correction: float32 of the head's shape, or empty.
        preconditioner: float32 (d + 1, d + 1), or empty.
        shape: (K, d + 1), of the head.
    """
    if not 0.0 <= rates[0] < 1.0:
        raise ValueError(f"momentum is {rates[0]}, expected at least 0 and less than 1")
    for rate in rates[1:]:
        if not 0.0 <= rate < 1e30:
            raise ValueError(f"weight decay or mu is {rate}, expected a number of at least 0")
    if correction.numel() > 0:
        check_array("the correction", correction, shape)
    if preconditioner.numel() > 0:
        check_array("the preconditioner", preconditioner, [shape[1], shape[1]])


def step_direction(
    gradient: Tensor,
    matrix: Tensor,
    velocity: Tensor,
    start: Tensor,
    rates: list[float],
    correction: Tensor,
    preconditioner: Tensor,
) -> Tensor:
    """Where a step goes: the gradient with all terms, in the order of ``client/sgd.py``.

    Args:
        gradient: float32 (K, d + 1), of the batch.
        matrix: the head before the step.
        velocity: the direction of the step before; zeros before the first.
        start: the round's head.
        rates: momentum, weight decay and mu; 0: without.
        correction: added; empty: without.
        preconditioner: multiplies the gradient alone, from the right; empty: without.

    Returns:
        float32 (K, d + 1), which times the learning rate is taken off the head.
    """
    if preconditioner.numel() > 0:
        gradient = gradient @ preconditioner
    pull: list[Tensor] = []
    if rates[0] > 0.0:
        pull.append(rates[0] * velocity)
    if rates[1] > 0.0:
        pull.append(rates[1] * matrix)
    if rates[2] > 0.0:
        pull.append(rates[2] * (matrix - start))
    if correction.numel() > 0:
        pull.append(correction)
    if len(pull) > 0:
        gradient = gradient + torch.stack(pull).sum(0)
    return gradient
