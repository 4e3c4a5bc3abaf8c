"""device.pte: one ExecuTorch file with which a phone computes features, trains and counts.

No method keeps anything: the head goes in and comes out, so any runtime of ExecuTorch will do,
without its extension for training and without autograd. C++, Kotlin and Swift call these methods.
d is the number of features, K that of classes, D = d + 1, S the images' height and width, and n from
1 to 256. A head is one array, the matrix: float32 (K, D), the bias in the last column.

==============  ==========================================  ==================================
method          inputs, in this order                       outputs, in this order
==============  ==========================================  ==================================
``features``    images uint8 (1, 3, S, S), planes of RGB    uint8 (1, d)
``train_step``  features uint8 (n, d), labels int64 (n,),   matrix float32 (K, D), velocity
                matrix, velocity, start, correction, all    float32 (K, D), loss float32 ()
                float32 (K, D), settings float32 (5,)
``train_step_   the same, and preconditioner                the same
preconditioned``  float32 (D, D)
``gram``        features uint8 (n, d), labels int64 (n,)    gram float32 (D, D), moments
                                                            float32 (K, D)
``predict``     features uint8 (n, d), matrix               logits float32 (n, K)
``clipped``     update float32 (K, D), clip float64 (1,)    integers int64 (K, D), within
                                                            int64 (1,)
``probe``       none                                        images uint8 (1, 3, S, S), their
                                                            features uint8 (1, d)
==============  ==========================================  ==================================

The settings are learning rate, momentum, weight decay, mu and unit norm; with 0 a term is left out,
and features keep their length. ``start`` is the round's head, ``correction`` zeros if there is none,
``velocity`` zeros at the first step. The loss is that before the step. ``gram`` and ``moments`` hold
whole numbers below 2**24: a caller adds them up as integers.

These methods have no inputs and give one value each: ``fingerprint`` (text, of the backbone),
``classes`` (text, one name a line), ``abilities`` (text, words with a blank between), ``input_size``,
``num_features``, ``num_classes``, ``most_rows`` (whole numbers).

A caller checks shapes, types, labels and that numbers are finite: nothing here can refuse them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.backbone.frozen import FrozenBackbone, probe_images
from common.backbone.projection import projected
from common.privacy.integers import FINE, RESOLUTION
from common.softmax import softmax_gradient
from common.statistics import EXACT_ROWS
from server.export.device_arrays import head_logits, trainer_view
from server.export.targets.executorch import StandardModel, written
from server.export.trained import TrainedModel

__all__ = ["ABILITIES", "SETTINGS", "device_pte_file"]

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


def device_pte_file(backbone: FrozenBackbone, classes: tuple[str, ...]) -> bytes:
    """The file of a backbone, for heads of these classes.

    Args:
        backbone: frozen, for the quantized engine qnnpack.
        classes: their K names.
    """
    size, d, k = backbone.spec.input_size, backbone.spec.num_features, len(classes)
    image = torch.from_numpy(probe_images(size)[:1].copy())
    # Recorded before the backbone computes anything here: see ``recorded``.
    features = _Features(backbone)
    expected = torch.from_numpy(backbone.features(image))
    settings = torch.tensor([0.1, 0.9, 1e-4, 0.01, 0.0])
    batch = _batch(d, k)
    # Each tensor is one of its own: of one that is passed twice, export makes one input.
    heads = [torch.full((k, d + 1), 0.01 * i) for i in range(4)]
    step = (*batch, *heads, settings)
    n = torch.export.Dim("n", min=1, max=EXACT_ROWS)
    rows: dict[int, Any] = {0: n}
    calls: Mapping[str, tuple[nn.Module, tuple[Tensor, ...], tuple[Any, ...]]] = {
        "features": (features, (image,), (None,)),
        "train_step": (_Step(backbone), step, (rows, rows, *(None,) * 5)),
        "train_step_preconditioned": (
            _Step(backbone),
            (*step, torch.eye(d + 1)),
            (rows, rows, *(None,) * 6),
        ),
        "gram": (_Gram(k), _batch(d, k), (rows, rows)),
        "predict": (_Predict(backbone), (_batch(d, k)[0], torch.ones(k, d + 1)), (rows, None)),
        "clipped": (
            _Clipped(),
            (torch.ones(k, d + 1), torch.ones(1, dtype=torch.float64)),
            (None, None),
        ),
        "probe": (_Probe(image, expected), (), ()),
    }
    constants = {
        "fingerprint": backbone.fingerprint,
        "classes": "\n".join(classes),
        "abilities": " ".join(ABILITIES),
        "input_size": size,
        "num_features": d,
        "num_classes": k,
        "most_rows": EXACT_ROWS,
    }
    return written(calls, constants)


def _batch(d: int, k: int) -> tuple[Tensor, Tensor]:
    """An example of features and labels; its size is none that means something else."""
    n = 7
    features = torch.arange(n * d).remainder(256).to(torch.uint8).reshape(n, d)
    return features, torch.arange(n).remainder(k)


class _Features(nn.Module):
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


class _Step(_Seen):
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


class _Gram(nn.Module):
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


class _Predict(_Seen):
    def forward(self, features: Tensor, matrix: Tensor) -> Tensor:
        return head_logits(features, self.gain, self.center, matrix)


class _Clipped(nn.Module):
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


class _Probe(nn.Module):
    images: Tensor
    expected: Tensor

    def __init__(self, images: Tensor, expected: Tensor) -> None:
        super().__init__()
        self.register_buffer("images", images)
        self.register_buffer("expected", expected)

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.images.clone(), self.expected.clone()
