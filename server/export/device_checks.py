"""What the device model refuses: compiled by TorchScript, so that a phone says it, too."""

# No `from __future__ import annotations`: TorchScript cannot read annotations that are strings.

import torch
from torch import Tensor

from common.backbone.module import dtype_name

__all__ = ["check_array", "check_examples", "check_learning_rate"]


def check_examples(features: Tensor, labels: Tensor, num_features: int, num_classes: int) -> None:
    """Refuse what a head of K classes over d features cannot be trained on."""
    if features.dtype != torch.uint8:
        raise ValueError(f"features are {dtype_name(features)}, expected uint8")
    if features.dim() != 2 or features.size(1) != num_features:
        raise ValueError(f"features have shape {features.shape}, expected (n, {num_features})")
    n = features.size(0)
    if n == 0:
        raise ValueError("the batch holds no example")
    if labels.dtype != torch.int64:
        raise ValueError(f"labels are {dtype_name(labels)}, expected int64")
    if labels.dim() != 1 or labels.size(0) != n:
        raise ValueError(f"labels have shape {labels.shape}, expected ({n},)")
    low, high = int(labels.min().item()), int(labels.max().item())
    if low < 0 or high >= num_classes:
        raise ValueError(f"labels lie in [{low}, {high}], expected [0, {num_classes - 1}]")


def check_learning_rate(lr: float) -> None:
    """Refuse what is not above 0; NaN is not."""
    if not lr > 0.0:
        raise ValueError(f"lr is {lr}, expected a number above 0")


def check_array(name: str, array: Tensor, expected: list[int]) -> None:
    """Refuse an array of a head that has another type or shape, or is not finite."""
    if array.dtype != torch.float32:
        raise ValueError(f"{name} is {dtype_name(array)}, expected float32")
    if list(array.shape) != expected:
        raise ValueError(f"{name} has shape {array.shape}, expected {expected}")
    if not bool(torch.isfinite(array).all().item()):
        raise ValueError(f"{name} is not finite")
