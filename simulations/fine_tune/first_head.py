"""The head that a fine-tuning starts with: ridge regression on the pretrained features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from common.backbone.int8 import Normalization
from common.backbone.module import Tapped
from common.backbone.quantize import pooled
from common.datasets import Dataset
from common.progress import track
from common.ridge import auto_ridge
from common.temperature import ridge_temperature
from common.types import IntArray

__all__ = ["BATCH", "Examples", "TrainedHead", "features_of", "first_head"]

BATCH = 32

_Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Examples:
    """Labelled images, read when they are needed.

    Attributes:
        dataset: where they are.
        positions: int64 (n,), which of its images they are.
        input_size: S, height and width in pixels.
        normalization: of their pixels.
    """

    dataset: Dataset
    positions: IntArray
    input_size: int
    normalization: Normalization

    def __len__(self) -> int:
        return len(self.positions)

    def batch(self, rows: IntArray) -> tuple[Tensor, Tensor]:
        """Normalized float32 (b, 3, S, S) and labels int64 (b,) of some of them."""
        chosen = self.positions[rows]
        pixels = self.dataset.images(chosen, self.input_size)
        return self.normalization(pixels), torch.from_numpy(self.dataset.labels[chosen])


class TrainedHead(nn.Module):
    """A linear head on features that are scaled as a run scales them: centred, a gain a block.

    Args:
        center: (d,), what is subtracted.
        gain: (d,), what multiplies the difference.
        weight: (K, d), trained.
        bias: (K,), trained.
    """

    center: Tensor
    gain: Tensor

    def __init__(self, center: Tensor, gain: Tensor, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("center", center)
        self.register_buffer("gain", gain)
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, features: Tensor) -> Tensor:
        """Float (b, d) to logits (b, K)."""
        return nn.functional.linear((features - self.center) * self.gain, self.weight, self.bias)


def features_of(tapped: Tapped, images: Tensor) -> Tensor:
    """Float features (b, d) of normalized images, block after block."""
    return torch.cat(pooled(tapped, images), dim=1)


def first_head(tapped: Tapped, examples: Examples) -> TrainedHead:
    """The ridge head of the network's features, its logits divided by their temperature."""
    gram, by_class, widths = _sums(tapped, examples)
    n, counts, d = len(examples), by_class[:, -1], sum(widths)
    center = gram[-1, :d] / n
    within = gram[:d, :d] - n * np.outer(center, center)
    variances = np.split(np.diag(within) / n, np.cumsum(widths)[:-1])
    gain = np.repeat([max(part.mean(), 1e-12) ** -0.5 for part in variances], widths)
    a, b = np.zeros((d + 1, d + 1)), np.empty_like(by_class)
    a[:d, :d], a[d, d] = within * np.outer(gain, gain), n
    b[:, :d], b[:, d] = (by_class[:, :d] - np.outer(counts, center)) * gain, counts
    found = auto_ridge(a, b, n)
    matrix = found.matrix / ridge_temperature(found.matrix, a, b, found.freedom)
    arrays = (center, gain, matrix[:, :d], matrix[:, d])
    return TrainedHead(*(torch.tensor(array, dtype=torch.float32) for array in arrays))


def _sums(tapped: Tapped, examples: Examples) -> tuple[_Array, _Array, list[int]]:
    """X^T X and Y^T X of all examples, with a 1 after their features; and the blocks' widths."""
    a, b, widths = np.zeros(()), np.zeros(()), list[int]()
    starts = range(0, len(examples), BATCH)
    for start in track(starts, "a first head", len(starts)):
        images, labels = examples.batch(np.arange(start, min(start + BATCH, len(examples))))
        with torch.no_grad():
            blocks = [block.double().numpy() for block in pooled(tapped, images)]
        x = np.column_stack([*blocks, np.ones(len(images))])
        a = a + x.T @ x
        b = b + np.eye(examples.dataset.num_classes)[labels.numpy()].T @ x
        widths = [block.shape[1] for block in blocks]
    return a, b, widths
