"""What a phone sends in a private round, compiled by TorchScript: numpy's integers to the bit."""

# No `from __future__ import annotations`: TorchScript cannot read annotations that are strings.

import math

import torch
from torch import Tensor

__all__ = ["check_clip", "clipped_integers"]


def check_clip(clip: float, unit_norm: float) -> None:
    """Refuse bounds that no server means; NaN is none."""
    if not (clip > 0.0 and clip < math.inf):
        raise ValueError(f"clip is {clip}, expected a finite number above 0")
    if not (unit_norm >= 0.0 and unit_norm < math.inf):
        raise ValueError(f"unit_norm is {unit_norm}, expected a finite number of at least 0")


def clipped_integers(
    delta: Tensor, clip: float, resolution: int, fine: int
) -> tuple[Tensor, Tensor]:
    """``clipped`` and ``is_within`` of ``common.privacy.integers``, which say why it is so.

    Args:
        delta: float of any shape, at least one number.
        clip: a finite number above 0.
        resolution: RESOLUTION there.
        fine: FINE there.

    Returns:
        int64 of delta's shape; and int64 (1,): 1 if the delta is within the clip, else 0.
    """
    x = delta.to(torch.float64)
    peak = float(x.abs().max().item())
    if not peak < math.inf:
        raise ValueError("the update is not finite")
    if peak == 0.0:
        return torch.zeros_like(x, dtype=torch.int64), torch.ones([1], dtype=torch.int64)
    unit = x / peak
    steps = torch.ceil(unit.abs() * fine).to(torch.int64)
    norm = math.sqrt(float(int((steps * steps).sum().item()))) / fine
    is_longer = peak / clip * norm > 1.0
    factor = resolution / norm if is_longer else peak / clip * resolution
    within = torch.full([1], 0 if is_longer else 1, dtype=torch.int64)
    return torch.trunc(unit * factor).to(torch.int64), within
