"""EfficientNet-Lite0 beside a plain network that pads as TensorFlow's SAME does."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from common.backbone.architectures import ARCHITECTURES
from common.backbone.networks import float_network, quantizable_network, random_network
from common.backbone.prepare import _calibrate_batch_norm
from common.backbone.quantize import fold
from common.backbone.sources import embedded_file
from common.backbone.weights import load_weights
from common.backbone.weights_file import read_tensors
from common.config import load_config, parse_overrides

pytestmark = pytest.mark.wide

LITE = "efficientnet_lite0"
# TensorFlow's table: blocks, kernel, stride, expansion, channels.
BLOCKS = [
    (kernel, stride if first else 1, expansion)
    for blocks, kernel, stride, expansion in (
        (1, 3, 1, 1), (2, 3, 2, 6), (2, 5, 2, 6), (3, 3, 2, 6), (3, 5, 1, 6), (4, 5, 2, 6),
        (1, 3, 1, 6),
    )
    for first in (True, *[False] * (blocks - 1))
]  # fmt: skip


def same_padded(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """SAME: as many outputs as steps begin within the image, the odd pixel of padding behind it."""
    kernel = weight.shape[-1]
    total = [max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[2:]]
    (top, bottom), (left, right) = ((t // 2, t - t // 2) for t in total)
    padded = torch.nn.functional.pad(x, (left, right, top, bottom))
    groups = x.shape[1] if weight.shape[1] == 1 else 1
    return torch.conv2d(padded, weight, None, stride, groups=groups)


def reference(state: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The features before pooling, with tensors under the names of the package's file."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var, gain, bias = (
            state[f"{name}.{key}"][:, None, None]
            for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-3).sqrt() * gain + bias

    x = norm(same_padded(x, state["_conv_stem.weight"], 2), "_bn0").clamp(0, 6)
    for i, (_, stride, expansion) in enumerate(BLOCKS):
        block, before = f"_blocks.{i}.", x
        if expansion > 1:
            x = same_padded(x, state[f"{block}_expand_conv.weight"], 1)
            x = norm(x, f"{block}_bn0").clamp(0, 6)
        x = same_padded(x, state[f"{block}_depthwise_conv.weight"], stride)
        x = norm(x, f"{block}_bn1").clamp(0, 6)
        x = norm(same_padded(x, state[f"{block}_project_conv.weight"], 1), f"{block}_bn2")
        x = x + before if x.shape == before.shape else x
    return norm(same_padded(x, state["_conv_head.weight"], 1), "_bn1").clamp(0, 6)


def package_names() -> list[str]:
    """Of the features in the package's file, in its order."""
    layers = ["_conv_stem", "_bn0"]
    for i, (_, _, expansion) in enumerate(BLOCKS):
        block = ["_expand_conv", "_bn0"] if expansion > 1 else []
        block += ["_depthwise_conv", "_bn1", "_project_conv", "_bn2"]
        layers += [f"_blocks.{i}.{layer}" for layer in block]
    layers += ["_conv_head", "_bn1"]
    of_norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return [
        f"{layer}.{tensor}"
        for layer in layers
        for tensor in (of_norm if "_bn" in layer else ("weight",))
    ]


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Random weights with the batch statistics of noise: every layer passes some of it on."""
    network = random_network(LITE, 0)
    draw = torch.Generator().manual_seed(0)
    _calibrate_batch_norm(network, [torch.randn(4, 3, 64, 64, generator=draw)])
    return {
        key: value.double() if value.is_floating_point() else value
        for key, value in network.state_dict().items()
    }


@pytest.mark.parametrize("size", [64, pytest.param(75, marks=pytest.mark.slow)])
def test_features_are_those_of_tensorflows_padding_at_any_size(
    state: dict[str, Tensor], size: int
) -> None:
    upright = {
        name: value.flip(2, 3) if value.ndim == 4 else value
        for name, value in zip(package_names(), state.values(), strict=True)
    }
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1)).double()
    own = random_network(LITE, 0).double()
    own.load_state_dict(state)
    with torch.inference_mode():
        want, got = reference(upright, x), own(x)
        folded = fold(quantizable_network(LITE, own))(x)
        wrong = own(x.flip(2, 3))
    assert float(want.std()) > 0.01
    assert (got.flip(2, 3) - want).norm() < 1e-9 * want.norm()
    assert (folded - got).norm() < 1e-9 * got.norm()
    assert (wrong.mean((2, 3)) - want.mean((2, 3))).norm() > 1e-3 * want.mean((2, 3)).norm()


@pytest.mark.usefixtures("lite_weights")
def test_the_packages_weights_give_the_packages_features() -> None:
    loaded = load_weights(LITE, "imagenet")
    row = ARCHITECTURES[LITE]
    assert row.embedded is not None
    assert loaded.state is not None
    state = read_tensors(embedded_file(row.embedded, row.title))
    assert [name for name in state if not name.startswith("_fc.")] == package_names()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        want = reference({k: v.double() for k, v in state.items()}, x.double())
        got = float_network(LITE, loaded.state)(x).flip(2, 3)
    assert (got - want).norm() < 1e-5 * want.norm()
    assert "Apache-2.0" in loaded.licence


def test_unset_mean_and_std_are_the_architectures_own() -> None:
    def normalization(*items: str) -> tuple[tuple[float, ...], ...]:
        return load_config(None, parse_overrides(items)).backbone.normalization()

    lite = ((127 / 255,) * 3, (128 / 255,) * 3)
    arch = f"backbone.arch={LITE}"
    assert normalization(arch) == lite
    assert normalization() == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert normalization(arch, "backbone.std=[0.5, 0.5, 0.5]") == (lite[0], (0.5, 0.5, 0.5))


@pytest.mark.slow
@pytest.mark.usefixtures("lite_weights")
def test_int8_features_follow_the_float_ones(images, prepare) -> None:
    mean, std = ARCHITECTURES[LITE].mean, ARCHITECTURES[LITE].std
    settings = {"arch": LITE, "weights": "imagenet", "mean": mean, "std": std}
    backbone = prepare(images, **settings, feature_scaling="none", distill_steps=4)
    x = (torch.from_numpy(images).float() / 255 - mean[0]) / std[0]
    state = load_weights(LITE, "imagenet").state
    assert state is not None
    with torch.inference_mode():
        want = float_network(LITE, state)(x).mean((2, 3)).numpy()
    got = backbone.affine(backbone.features(images))
    products = (got * want).sum(1)
    cosine = products / np.linalg.norm(got, axis=1) / np.linalg.norm(want, axis=1)
    assert backbone.spec.num_features == 1280
    assert cosine.mean() > 0.95
