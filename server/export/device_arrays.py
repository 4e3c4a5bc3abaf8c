"""Arrays that a phone makes as the training side does, compiled by TorchScript."""

# No `from __future__ import annotations`: TorchScript cannot read annotations that are strings.

import torch
from torch import Tensor

__all__ = [
    "exact_sums",
    "head_logits",
    "noise_images",
    "trainer_view",
    "visiting_order",
    "visiting_orders",
]


def visiting_order(n: int, seed: int, epoch: int) -> Tensor:
    """``common.seeding.batch_order`` in int64 arithmetic, which wraps as uint64 does.

    Args:
        n: examples.
        seed: ``common.seeding.batch_seed`` of run, round and client.
        epoch: from 0.

    Returns:
        int64 (n,), a permutation.
    """
    state = splitmix64(torch.full([1], (seed ^ epoch)) - 7046029254386353131)
    draws = splitmix64(state + (torch.arange(n) + 1) * -7046029254386353131)
    return torch.sort((draws >> 1) & 0x7FFFFFFFFFFFFFFF, stable=True)[1]


def visiting_orders(n: int, seed: int, epochs: int, batch_size: int) -> Tensor:
    """The orders of all epochs, int64 (epochs, n); refuses numbers that make no steps."""
    if epochs < 1 or batch_size < 1:
        raise ValueError(f"epochs is {epochs} and batch_size {batch_size}, expected at least 1")
    return torch.stack([visiting_order(n, seed, epoch) for epoch in range(epochs)])


def splitmix64(z: Tensor) -> Tensor:
    """The mixing function; shifts are arithmetic, so what they fill in is masked away."""
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return z ^ ((z >> 31) & 0x1FFFFFFFF)


def noise_images(size: int, number: int) -> Tensor:
    """``common.backbone.probe.probe_images``, uint8 (number, 3, size, size)."""
    state = torch.arange(number * 3 * size * size) + 1
    state = (state ^ (state >> 7)) * -7046029254386353131
    return ((state >> 56) & 0xFF).to(torch.uint8).reshape(number, 3, size, size)


def trainer_view(q: Tensor, gain: Tensor, center: Tensor) -> Tensor:
    """uint8 (n, d) to x, float32 (n, d + 1): ``FeatureSet.x`` to the bit."""
    x = (q.to(torch.float32) - center) * gain
    return torch.cat([x, torch.ones([q.size(0), 1])], dim=1)


def head_logits(q: Tensor, gain: Tensor, center: Tensor, matrix: Tensor) -> Tensor:
    """uint8 features (n, d) to float32 logits (n, K)."""
    return trainer_view(q, gain, center) @ matrix.t()


def exact_sums(
    features: Tensor, labels: Tensor, num_classes: int, exact_rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The sums of ``DeviceModel.statistics``, in blocks that float32 adds up exactly.

    Args:
        features: uint8 (n, d).
        labels: int64 (n,), in [0, K).
        num_classes: K.
        exact_rows: rows of a block.
    """
    width = features.size(1) + 1
    gram = torch.zeros([width, width], dtype=torch.float64)
    moments = torch.zeros([num_classes, width], dtype=torch.float64)
    for start in range(0, features.size(0), exact_rows):
        rows = features[start : start + exact_rows]
        classes = labels[start : start + exact_rows]
        ones = torch.ones([rows.size(0), 1])
        block = torch.cat([rows.to(torch.float32), ones], dim=1)
        onehot = torch.zeros([rows.size(0), num_classes])
        onehot.scatter_(1, classes.unsqueeze(1), 1.0)
        gram += (block.t() @ block).to(torch.float64)
        moments += (onehot.t() @ block).to(torch.float64)
    upper = torch.triu_indices(width, width)
    counts = moments.to(torch.int64)
    return gram[upper[0], upper[1]].to(torch.int64), counts[:, :-1], counts[:, -1]
