"""Trains a whole float network, with a linear head on its features, on labelled images."""

from __future__ import annotations

import logging
import math
import time

import torch
from torch import nn

from common.backbone.blocks import Features, blocks_of
from common.backbone.module import Tapped, num_layers
from common.backbone.networks import State, float_network
from common.errors import BackboneError
from common.progress import track
from common.seeding import Purpose, permutation
from simulations.fine_tune.first_head import BATCH, Examples, features_of, first_head
from simulations.fine_tune.plan import Plan

__all__ = ["fine_tuned"]

_WARM_UP = 0.1  # of all steps: Adam's first ones have full size whatever the gradient's size
_UNTIMED, _TIMED = 1, 4  # steps; the first one allocates memory

_log = logging.getLogger("fedhead")


def fine_tuned(
    arch: str, state: State, features: Features, examples: Examples, plan: Plan
) -> nn.Module:
    """The network, trained to classify the examples by a linear head on its features.

    AdamW with linear warm-up and a cosine to zero. The head starts as the ridge head of the
    pretrained features, so that its first steps do not distort them (Kumar et al.: "Fine-tuning
    can distort pretrained features", arXiv 2202.10054). Layers that no feature needs stay as they
    are, and so do the statistics of batch norm. Each epoch's mean loss is logged. The same
    arguments on the same machine give the same weights.

    Args:
        arch: a key of ``ARCHITECTURES``.
        state: its pretrained weights; not changed.
        features: those of the experiments that will take the network.
        examples: at least one.
        plan: the settings.

    Returns:
        The network without its head, in eval mode.

    Raises:
        BackboneError: the loss is no finite number any more.
    """
    network = float_network(arch, state)
    # In eval mode batch norm keeps ImageNet's statistics: with those of 600 digits, heads on the
    # trained features got 86.4 % right instead of 96.9 %.
    tapped = Tapped(network, blocks_of(features, arch, num_layers(network))).eval()
    head = first_head(tapped, examples)
    parameters = [*tapped.requires_grad_(True).parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=plan.lr, weight_decay=0.0)
    size = min(BATCH, len(examples))
    per_epoch = len(examples) // size
    steps, started, total = plan.epochs * per_epoch, 0.0, 0.0
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
        loss = nn.functional.cross_entropy(head(features_of(tapped, images)), labels)
        if not bool(loss.isfinite()):
            raise BackboneError(f"fine-tuning {arch}: no finite loss in step {step}; lower --lr")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += loss.item()
        if position + 1 == per_epoch:
            mean, total = total / per_epoch, 0.0
            _log.info("epoch %d of %d: mean training loss %.3g", epoch + 1, plan.epochs, mean)
    return network.requires_grad_(False)


def _schedule(step: int, steps: int) -> float:
    warm_up = min(1.0, (step + 1) / max(_WARM_UP * steps, 1.0))
    return warm_up * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def _tell(arch: str, count: int, plan: Plan, seconds: float) -> None:
    epochs = "1 epoch" if plan.epochs == 1 else f"{plan.epochs} epochs"
    needed = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
    _log.info("fine-tuning %s on %s images, %s: about %s", arch, f"{count:,}", epochs, needed)
