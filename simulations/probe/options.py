"""Compares backbones, input sizes and kinds of features on the same images, with their cost."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tomli_w
import torch
from torch import nn

from common.backbone.blocks import Features, blocks_of
from common.backbone.frozen import FrozenBackbone, probe_images
from common.backbone.module import Tapped, num_layers
from common.backbone.networks import skeleton
from common.config import BackboneConfig, Config, PartitionConfig
from common.noise import wilson
from common.statistics import triangle_size
from server.export.run_model import prepare
from simulations.probe.gain import Gain, paired_gain
from simulations.probe.images import ProbeImages, head_features, held_out_predictions

__all__ = [
    "COMPARED",
    "FEATURE_KINDS",
    "INPUT_SIZES",
    "Option",
    "compare_options",
    "named",
    "recommended",
    "toml_lines",
]

COMPARED = 2000
"""Number of images that options are compared on, if each class has one per fold among them."""

INPUT_SIZES = (96, 160)
"""Input sizes that are compared unless the user says which; so is the configured one."""

FEATURE_KINDS: tuple[Features, ...] = ("gap", "compact")
"""Kinds of features that are compared unless the user says which."""

_CLOSE = 0.005  # half a point is not worth a slower model
_WARM_UP, _TIMED = 3, 15
_IMAGES_OF_A_CLIENT = 12  # before some are taken to test and to calibrate
_WORD = 4  # bytes of a float32 or uint32


@dataclass(frozen=True, eq=False)
class Option:
    """One choice of [backbone].

    Attributes:
        settings: the section.
        right: bool (n,), which test images the heads get right.
        multiplications: of the convolutions for one image.
        latency_ms: for one image on one core of this machine, features alone.
        model_bytes: the int8 backbone with its head.
        statistics_bytes: what a client sends once for a head in closed form.
        update_bytes: what a client sends each round for the head.
    """

    settings: BackboneConfig
    right: npt.NDArray[np.bool_]
    multiplications: int
    latency_ms: float
    model_bytes: int
    statistics_bytes: int
    update_bytes: int

    @property
    def accuracy(self) -> float:
        """Share of correct answers, in [0, 1]."""
        return float(self.right.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval of the accuracy."""
        return wilson(self.accuracy, len(self.right))

    @property
    def features(self) -> str:
        """The kind of features."""
        return named(self.settings.features)

    def gain_over(self, other: Option) -> Gain:
        """How much more it gets right than another option on the same images."""
        return paired_gain(other.right, self.right)


def named(features: Features) -> str:
    """A kind of features in a few letters."""
    return features if isinstance(features, str) else ",".join(map(str, features))


def compare_options(
    config: Config,
    images: ProbeImages,
    *,
    archs: Sequence[str],
    sizes: Sequence[int],
    features: Sequence[Features],
) -> tuple[Option, ...]:
    """Every combination, from small to large images.

    Args:
        config: an experiment's configuration; [backbone] gives what is not compared.
        images: the images; the same for every option.
        archs: values of backbone.arch.
        sizes: values of backbone.input-size.
        features: values of backbone.features.
    """
    return tuple(
        _measured(config.model_copy(update={"backbone": settings}), images)
        for size, arch, kind in itertools.product(sorted(sizes), archs, features)
        for settings in [_settings(config.backbone, arch, size, kind)]
    )


def _settings(base: BackboneConfig, arch: str, size: int, features: Features) -> BackboneConfig:
    changed: dict[str, Any] = {"arch": arch, "input_size": size, "features": features}
    if arch != base.arch:  # weights of one network, and their normalization, fit no other
        changed |= {"mean": None, "std": None}
        changed["weights"] = "random" if base.weights == "random" else "imagenet"
    return base.model_copy(update=changed)


def _measured(config: Config, images: ProbeImages) -> Option:
    backbone = prepare(config, images.dataset)
    train, test = (head_features(images, part, backbone) for part in (images.train, images.test))
    answers = held_out_predictions(images, train, test)
    width, k = backbone.spec.num_features + 1, images.dataset.num_classes
    return Option(
        settings=config.backbone,
        right=answers == images.dataset.labels[images.tested],
        multiplications=_multiplications(config.backbone),
        latency_ms=_latency_ms(backbone),
        model_bytes=len(backbone.base.to_bytes()) + _WORD * k * (backbone.spec.num_pooled + 1),
        statistics_bytes=_WORD * (triangle_size(width) + k * width),
        update_bytes=_WORD * k * width,
    )


def _multiplications(settings: BackboneConfig) -> int:
    """Of all convolutions for one image; counted on shapes, without computing."""
    whole, total = skeleton(settings.arch).eval(), 0
    network = Tapped(whole, blocks_of(settings.features, settings.arch, num_layers(whole)))

    def count(module: nn.Conv2d, _: object, output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel() * module.weight[0].numel()

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    with torch.no_grad():
        network(torch.empty(1, 3, settings.input_size, settings.input_size, device="meta"))
    return total


def _latency_ms(backbone: FrozenBackbone) -> float:
    """Median time for one image on one core."""
    image, threads = probe_images(backbone.spec.input_size)[:1], torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = []
        for _ in range(_WARM_UP + _TIMED):
            start = time.perf_counter()
            backbone.features(image)
            seconds.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return 1e3 * float(np.median(seconds[_WARM_UP:]))


def recommended(options: Sequence[Option]) -> Option:
    """The cheapest option that is not clearly worse than the most accurate one.

    Not clearly worse: at most half a point, or within the 95% interval of their difference. The
    cost is that of the convolutions, then bytes: a clock would decide otherwise on every call.
    """
    best = max(options, key=lambda option: option.accuracy)
    close = [
        option
        for option in options
        if (gain := best.gain_over(option)).value <= _CLOSE or not gain.is_sure
    ]
    return min(close, key=lambda o: (o.multiplications, o.statistics_bytes, -o.accuracy))


def toml_lines(option: Option, source: str, images: int) -> str:
    """The lines of an experiment file that choose this option.

    Args:
        option: what to choose.
        source: the data set's source.
        images: how many there are; if they are few, fewer clients than by default share them.
    """
    keys = {"arch", "weights", "input_size", "features", "mean", "std"}
    backbone = option.settings.model_dump(by_alias=True, exclude_none=True, include=keys)
    content: dict[str, dict[str, Any]] = {
        "data": {"source": source},
        "backbone": backbone,
        "strategy": {"name": "fed3r"},
        "train": {"rounds": 1},
    }
    if images < _IMAGES_OF_A_CLIENT * PartitionConfig().num_clients:
        content["partition"] = {"num-clients": max(2, images // _IMAGES_OF_A_CLIENT)}
    return tomli_w.dumps(content).rstrip()
