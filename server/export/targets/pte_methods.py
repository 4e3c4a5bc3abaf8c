"""The methods of device.pte, which C++, Kotlin and Swift call.

No method keeps anything: the head goes in and comes out, so any runtime of ExecuTorch will do,
without its extension for training and without autograd. d is the number of features, K that of
classes, D = d + 1, S the images' height and width, and n from 1 to 256. A head is one array, the
matrix: float32 (K, D), the bias in the last column. Inputs and outputs, in this order:

features
    images uint8 (1, 3, S, S), planes of red, green and blue;
    gives uint8 (1, d).
train_step
    features uint8 (n, d), labels int64 (n,), matrix (K, D), velocity (K, D), start (K, D),
    correction (K, D), settings (5,), all float32 from the matrix on;
    gives the new matrix (K, D), the new velocity (K, D), and the loss before the step (), float32.
train_step_preconditioned
    the same, and preconditioner float32 (D, D); gives the same.
gram
    features uint8 (n, d), labels int64 (n,);
    gives gram (D, D) and moments (K, D), float32: whole numbers below 2**24, of [q 1]. The last
    column of the moments holds counts. A caller adds up integers of them.
predict
    features uint8 (n, d), matrix float32 (K, D); gives logits float32 (n, K).
clipped
    update float32 (K, D), clip float64 (1,);
    gives the integers of ``common.privacy.integers.clipped``, int64 (K, D), and whether the update
    was within the clip, int64 (1,).
head
    gives the run's head, float32 (K, D).
probe
    gives images uint8 (1, 3, S, S), and the features uint8 (1, d) that they must have.

The settings are learning rate, momentum, weight decay, mu and unit norm. With 0 a term is left out,
and rows keep their length (see ``common.softmax.rows_of_norm``). ``start`` is the round's head;
``correction`` is zeros if there is none, ``velocity`` zeros at the first step of a round.

These have no inputs and give one value: ``fingerprint`` (of the backbone), ``classes`` (one name a
line) and ``abilities`` (words with a blank between) are text; ``input_size``, ``num_features``,
``num_classes`` and ``most_rows`` are whole numbers.

A caller checks shapes, types, labels and that numbers are finite: nothing here can refuse them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.backbone.frozen import FrozenBackbone
from common.backbone.projection import projected
from common.privacy.integers import FINE, RESOLUTION
from common.softmax import softmax_gradient
from server.export.device_arrays import head_logits, trainer_view
from server.export.targets.executorch import StandardModel

__all__ = [
    "ABILITIES",
    "METHODS",
    "SETTINGS",
    "Clipped",
    "Constants",
    "Features",
    "Gram",
    "Predict",
    "Step",
]

ABILITIES = (
    "momentum",
    "decay",
    "mu",
    "correction",
    "preconditioner",
    "unit-norm",
    "gram",
    "predict",
    "clip",
    "probe",
)
"""What a phone with this file can do, as ``abilities`` says it."""

SETTINGS = ("lr", "momentum", "decay", "mu", "unit_norm")
"""What each of the numbers in ``settings`` is."""


METHODS = {
    "features": "(uint8[1,3,S,S] images) -> uint8[1,d]",
    "train_step": (
        "(uint8[n,d] features, int64[n] labels, float[K,D] matrix, float[K,D] velocity, "
        "float[K,D] start, float[K,D] correction, float[5] settings) -> "
        "(float[K,D], float[K,D], float)"
    ),
    "train_step_preconditioned": (
        "(uint8[n,d] features, int64[n] labels, float[K,D] matrix, float[K,D] velocity, "
        "float[K,D] start, float[K,D] correction, float[5] settings, "
        "float[D,D] preconditioner) -> (float[K,D], float[K,D], float)"
    ),
    "gram": "(uint8[n,d] features, int64[n] labels) -> (float[D,D], float[K,D])",
    "predict": "(uint8[n,d] features, float[K,D] matrix) -> float[n,K]",
    "clipped": "(float[K,D] update, double[1] clip) -> (int64[K,D], int64[1])",
    "head": "() -> float[K,D]",
    "probe": "() -> (uint8[1,3,S,S], uint8[1,d])",
    "fingerprint": "() -> str",
    "classes": "() -> str",
    "abilities": "() -> str",
    "input_size": "() -> int",
    "num_features": "() -> int",
    "num_classes": "() -> int",
    "most_rows": "() -> int",
}
"""The same for cards."""


class Features(nn.Module):
    """The backbone's, projected if it projects them."""

    def __init__(self, backbone: FrozenBackbone) -> None:
        super().__init__()
        self.network = StandardModel(backbone.base, None)
        self.arrays: tuple[Tensor, ...] = ()
        if (found := backbone.projection) is not None:
            self.arrays = tuple(
                torch.from_numpy(array.copy())
                for array in (found.center, found.basis, found.multiplier)
            )

    def forward(self, images: Tensor) -> Tensor:
        q = self.network(images).to(torch.uint8)
        return projected(q, *self.arrays) if self.arrays else q


class _Seen(nn.Module):
    """Features as trainers see them."""

    gain: Tensor
    center: Tensor

    def __init__(self, backbone: FrozenBackbone) -> None:
        super().__init__()
        self.register_buffer("gain", torch.from_numpy(backbone.affine.gain.copy()))
        self.register_buffer("center", torch.from_numpy(backbone.affine.center.copy()))


class Step(_Seen):
    """One step of ``client.sgd.train_head``."""

    def forward(
        self,
        features: Tensor,
        labels: Tensor,
        matrix: Tensor,
        velocity: Tensor,
        start: Tensor,
        correction: Tensor,
        settings: Tensor,
        preconditioner: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        lr, momentum, decay, mu, unit_norm = (settings[i] for i in range(len(SETTINGS)))
        x = _of_norm(trainer_view(features, self.gain, self.center), unit_norm)
        loss, direction = softmax_gradient(x, labels, matrix)
        if preconditioner is not None:
            direction = direction @ preconditioner
        pull = momentum * velocity + decay * matrix + mu * (matrix - start) + correction
        direction = direction + pull
        return matrix - lr * direction, direction, loss


def _of_norm(x: Tensor, norm: Tensor) -> Tensor:
    """``common.softmax.rows_of_norm`` where the norm is above 0; in float32, which is fast here."""
    values, one = x[:, :-1], x[:, -1:]
    lengths = torch.sqrt((values * values) @ torch.ones(values.shape[1], 1))
    factors = torch.where(lengths > 0, norm / torch.where(lengths > 0, lengths, 1.0), 0.0)
    is_set = norm > 0
    return torch.cat([values * torch.where(is_set, factors, 1.0), one * ~is_set], dim=1)


class Gram(nn.Module):
    """``common.statistics.feature_statistics`` of a batch."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        q = features.to(torch.float32)
        block = torch.cat([q, torch.ones_like(q[:, :1])], dim=1)
        classes = torch.arange(self.num_classes)
        onehot = (labels.unsqueeze(1) == classes).to(torch.float32)
        return block.t() @ block, onehot.t() @ block


class Predict(_Seen):
    """A head's logits."""

    def forward(self, features: Tensor, matrix: Tensor) -> Tensor:
        return head_logits(features, self.gain, self.center, matrix)


class Clipped(nn.Module):
    """``server.export.device_privacy.clipped_integers`` without branches."""

    def forward(self, update: Tensor, clip: Tensor) -> tuple[Tensor, Tensor]:
        x = update.to(torch.float64)
        peak = x.abs().amax().reshape(1)
        unit = x / torch.where(peak > 0, peak, 1.0)
        steps = torch.ceil(unit.abs() * FINE).to(torch.int64)
        norm = torch.sqrt((steps * steps).sum().reshape(1).to(torch.float64)) / FINE
        is_longer = peak / clip * norm > 1.0
        least = torch.where(norm > 0, norm, 1.0)
        factor = torch.where(is_longer, RESOLUTION / least, peak / clip * RESOLUTION)
        return torch.trunc(unit * factor).to(torch.int64), 1 - is_longer.to(torch.int64)


class Constants(nn.Module):
    """A method without inputs that gives arrays."""

    def __init__(self, *arrays: Tensor) -> None:
        super().__init__()
        self._count = len(arrays)
        for i, array in enumerate(arrays):
            self.register_buffer(f"array{i}", array)

    def forward(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, f"array{i}").clone() for i in range(self._count))
