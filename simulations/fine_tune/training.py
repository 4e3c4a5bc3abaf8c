"""Trains a whole float network, with a linear head on its features, on labelled images."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from common.backbone.int8 import Normalization
from common.backbone.networks import State, float_network
from common.datasets import Dataset
from common.errors import BackboneError
from common.progress import track
from common.ridge import auto_ridge
from common.seeding import Purpose, permutation
from common.temperature import ridge_temperature
from common.types import IntArray
from simulations.fine_tune.plan import Plan

__all__ = ["Examples", "fine_tuned"]

_BATCH = 32
_WARM_UP = 0.1  # of all steps: Adam's first ones have full size whatever the gradient's size
_UNTIMED, _TIMED = 1, 4  # steps; the first one allocates memory

_log = logging.getLogger("fedhead")


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


def fine_tuned(arch: str, state: State, examples: Examples, plan: Plan) -> nn.Module:
    """The network with all its weights trained to classify the examples.

    AdamW with linear warm-up and a cosine to zero. The head starts as the ridge head of the
    pretrained features, so that its first steps do not distort them (Kumar et al.: "Fine-tuning
    can distort pretrained features", arXiv 2202.10054). The same arguments on the same machine
    give the same weights.

    Args:
        arch: a key of ``ARCHITECTURES``.
        state: its pretrained weights; not changed.
        examples: at least one.
        plan: the settings.

    Returns:
        The network without its head, in eval mode.

    Raises:
        BackboneError: the loss is no finite number any more.
    """
    network = float_network(arch, state)
    head = _first_head(network, examples)
    parameters = [*network.requires_grad_(True).parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=plan.lr, weight_decay=0.0)
    size = min(_BATCH, len(examples))
    per_epoch = len(examples) // size
    steps, started = plan.epochs * per_epoch, 0.0
    for step in track(range(steps), f"fine-tuning {arch}", steps):
        if step == _UNTIMED:
            started = time.monotonic()
        if step == _UNTIMED + _TIMED:
            _tell(arch, len(examples), plan, steps * (time.monotonic() - started) / _TIMED)
        epoch, position = divmod(step, per_epoch)
        order = permutation(len(examples), plan.seed, Purpose.FINE_TUNING, epoch)
        images, labels = examples.batch(order[position * size : (position + 1) * size])
        for group in optimizer.param_groups:
            group["lr"] = plan.lr * _schedule(step, steps)
        loss = nn.functional.cross_entropy(head(_pooled(network, images)), labels)
        if not bool(loss.isfinite()):
            raise BackboneError(f"fine-tuning {arch}: no finite loss in step {step}; lower --lr")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return network.requires_grad_(False)


def _pooled(network: nn.Module, images: Tensor) -> Tensor:
    features: Tensor = network(images).mean((2, 3))
    return features


def _first_head(network: nn.Module, examples: Examples) -> nn.Linear:
    """The ridge head of the network's features, its logits divided by their temperature."""
    classes = examples.dataset.num_classes
    a, b = np.zeros((0, 0)), np.zeros((0, 0))
    starts = range(0, len(examples), _BATCH)
    for start in track(starts, "a first head", len(starts)):
        images, labels = examples.batch(np.arange(start, min(start + _BATCH, len(examples))))
        with torch.no_grad():
            features = _pooled(network, images).double().numpy()
        design = np.column_stack([features, np.ones(len(features))])
        onehot = np.eye(classes)[labels.numpy()]
        if not start:
            a, b = np.zeros((design.shape[1],) * 2), np.zeros((classes, design.shape[1]))
        a += design.T @ design
        b += onehot.T @ design
    found = auto_ridge(a, b, len(examples))
    matrix = found.matrix / ridge_temperature(found.matrix, a, b, found.freedom)
    # Made without memory first, because its constructor would draw random weights.
    head = nn.Linear(len(a) - 1, classes, device="meta").to_empty(device="cpu")
    head.load_state_dict(
        {
            "weight": torch.from_numpy(matrix[:, :-1]).float(),
            "bias": torch.from_numpy(matrix[:, -1]).float(),
        }
    )
    return head


def _schedule(step: int, steps: int) -> float:
    warm_up = min(1.0, (step + 1) / max(_WARM_UP * steps, 1.0))
    return warm_up * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def _tell(arch: str, count: int, plan: Plan, seconds: float) -> None:
    epochs = "1 epoch" if plan.epochs == 1 else f"{plan.epochs} epochs"
    needed = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
    _log.info("fine-tuning %s on %s images, %s: about %s", arch, f"{count:,}", epochs, needed)
