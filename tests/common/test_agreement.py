"""Scales with which all runtimes round alike: their formulas, over all that can occur."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.backbone._deprecations import accepted_deprecations
from common.backbone.agreement import agreed_input, agreed_sum, agreed_weights, whole_biases
from common.backbone.frozen import FrozenBackbone
from common.backbone.spec import IMAGENET_MEAN, IMAGENET_STD

f32 = np.float32


def qnnpack_product(weight, input_scale, output_scale):
    """generate_requantization_scales in torch's qnnpack_utils.h."""
    return (weight * f32(input_scale)) * (f32(1) / f32(output_scale))


def xnnpack_product(weight, input_scale, output_scale):
    """Creation of a convolution in XNNPACK's convolution-nhwc.c; ONNX Runtime's is the same."""
    return (f32(input_scale) * weight) / f32(output_scale)


def multipliers(ratios, bits):
    """Two ratios as whole numbers of so many bits, and by how many bits they are too large."""
    shift = bits - int(np.floor(np.log2(max(ratios))))
    return [int(np.rint(np.float64(ratio) * 2.0**shift)) for ratio in ratios], shift


def qnnpack_sum(a, b, ratios):
    """q8vadd of qnnpack: 21 bits, halves away from zero."""
    (first, second), shift = multipliers(ratios, 21)
    total = a * first + b * second
    sign = np.where(total < 0, -1, 1)
    return sign * ((np.abs(total) + (1 << (shift - 1))) >> shift)


def xnnpack_sum(a, b, ratios):
    """qs8-vadd of XNNPACK: 20 bits, halves up."""
    (first, second), shift = multipliers(ratios, 20)
    return (a * first + b * second + (1 << (shift - 1))) >> shift


def float_sum(a, b, ratios):
    """ONNX Runtime's QLinearAdd: float32, halves to even."""
    return np.rint(a.astype(f32) * ratios[0] + b.astype(f32) * ratios[1]).astype(np.int64)


STEPS = np.exp(np.random.default_rng(0).uniform(np.log(0.003), np.log(0.3), (50, 2)))


def torchs(bias, steps):
    """How torch makes whole numbers of a convolution's biases: QuantizeBias in QuantUtils.h."""
    zeros = torch.zeros(len(bias), dtype=torch.int64)
    scales = torch.from_numpy(steps).double()
    with accepted_deprecations():
        q = torch.quantize_per_channel(torch.from_numpy(bias), scales, zeros, 0, torch.qint32)
        return q.int_repr().numpy()


def some_scales(rng):
    return np.exp(rng.uniform(np.log(2e-4), np.log(0.1), 2000)).astype(f32)


def test_products_are_the_same_in_all_words():
    differed = []
    for input_scale, output_scale in STEPS.astype(f32).tolist():
        scales = some_scales(np.random.default_rng(int(input_scale * 1e9)))
        own = (scales, input_scale, output_scale)
        differ = qnnpack_product(*own) != xnnpack_product(*own)
        differed.append(differ.mean())
        moved = agreed_weights(*own)
        agreed = (moved, input_scale, output_scale)
        assert np.array_equal(qnnpack_product(*agreed), xnnpack_product(*agreed))
        assert np.array_equal(moved[~differ], scales[~differ])
        ulps = np.abs(moved.view(np.int32).astype(np.int64) - scales.view(np.int32))
        assert ulps.max() < 100
    assert 0.15 < np.mean(differed) < 0.4


def test_biases_are_whole_and_so_the_same_in_all_words():
    rng = np.random.default_rng(1)
    scales, bias = some_scales(rng), rng.normal(0, 3, 2000).astype(f32)
    step = f32(0.02)
    steps = scales * step
    words = {
        "divided": lambda b: np.rint(b / steps),
        "multiplied": lambda b: np.rint(b * (f32(1) / steps)),
        "in float64": lambda b: np.rint(b / (scales.astype(np.float64) * step)),
    }
    whole = whole_biases(bias, scales, float(step))
    assert (np.abs(whole - bias) <= 0.51 * steps).all()
    numbers = [word(whole) for word in words.values()]
    assert all(np.array_equal(numbers[0], other) for other in numbers)
    assert np.array_equal(torchs(whole, steps), numbers[0])
    numbers = [word(bias) for word in words.values()]
    assert not all(np.array_equal(numbers[0], other) for other in numbers)


def test_torch_and_executorch_round_the_largest_biases_in_the_same_words():
    """Channels that died in training are all bias: 2**28 of its steps."""
    steps = np.geomspace(2e-9, 2e-8, 2000, dtype=f32)
    bias = np.random.default_rng(2).uniform(-4, 4, 2000).astype(f32)
    # quantize_per_channel of torch.ao.quantization.fx._decomposed, with which ExecuTorch writes.
    inverse = 1.0 / torch.from_numpy(steps)
    by_executorch = torch.round(torch.from_numpy(bias) * inverse).to(torch.int64)
    fits = by_executorch.abs() < 2**31
    assert by_executorch.abs().max() > 2**28
    assert np.array_equal(torchs(bias, steps)[fits], by_executorch[fits])


KEPT = np.random.default_rng(1).uniform(0.2, 1.5, (30, 2)).tolist()


def all_pairs(rng):
    """All pairs of uint8, less their zero points."""
    zero = rng.integers(0, 256, 2)
    return np.meshgrid(np.arange(256) - zero[0], np.arange(256) - zero[1])


@pytest.mark.parametrize("ratios", KEPT)
def test_all_sums_of_two_bytes_are_the_same_in_all_words(ratios):
    rng = np.random.default_rng(int(ratios[0] * 1e6))
    output = float(f32(rng.uniform(0.01, 0.2)))
    kept, moved = (float(f32(ratio * output)) for ratio in ratios)
    step, other = agreed_sum(kept, moved, output)
    assert step == pytest.approx(output, rel=1 / 300)
    assert other == pytest.approx(moved, rel=1 / 150)
    agreed = (f32(kept) / f32(step), f32(other) / f32(step))
    a, b = all_pairs(rng)
    sums = [add(a, b, agreed) for add in (qnnpack_sum, xnnpack_sum, float_sum)]
    assert np.array_equal(sums[0], sums[1])
    assert np.array_equal(sums[0], sums[2])


def test_sums_that_are_not_moved_differ():
    pairs = []
    for ratios in KEPT:
        a, b = all_pairs(np.random.default_rng(0))
        parts = tuple(f32(ratio) for ratio in ratios)
        pairs.append((qnnpack_sum(a, b, parts) != xnnpack_sum(a, b, parts)).sum())
    assert np.mean(np.array(pairs) > 0) > 0.5


@pytest.mark.parametrize("scale", np.random.default_rng(2).uniform(0.01, 0.04, 20).tolist())
def test_no_pixel_is_nearly_a_tie(scale):
    mean, std = (np.array(v, f32) * f32(255) for v in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = (np.arange(256, dtype=f32)[:, None] - mean) / std
    step = agreed_input(pixels, scale)
    assert scale <= step * (1 + 1e-6) <= scale * 1.01
    divided, multiplied = np.rint(pixels / f32(step)), np.rint(pixels * (f32(1) / f32(step)))
    assert np.array_equal(divided, multiplied)
    assert np.array_equal(divided, np.rint(pixels.astype(np.float64) / step))


@pytest.mark.wide
@pytest.mark.parametrize("features", ["gap", "compact"])
@pytest.mark.parametrize(
    "arch",
    [
        "mobilenet_v2",
        "efficientnet_lite0",
        "mobilenet_v3_small",
        pytest.param("mobilenet_v3_large", marks=pytest.mark.slow),
    ],
)
def test_every_channel_and_every_sum_of_a_backbone_agrees(make_trained, arch, features):
    from server.export.float_network import recorded

    weights = "random" if "v3" in arch else "imagenet"
    backbone: FrozenBackbone = make_trained(arch, weights, 64, features).backbone
    network = recorded(backbone)
    steps = [network.input_scale, *(step.scale for step in network.steps)]
    rng, sums, channels = np.random.default_rng(0), 0, 0
    for step in network.steps:
        inputs = [steps[i] for i in step.inputs]
        if (conv := step.convolution) is not None:
            scales = (inputs[0], step.scale)
            one, other = (
                f(conv.weight_scales, *scales) for f in (qnnpack_product, xnnpack_product)
            )
            assert np.array_equal(one, other)
            channels += len(one)
        if step.kind == "add":
            ratios = tuple(f32(value) / f32(step.scale) for value in inputs)
            a, b = all_pairs(rng)
            want = qnnpack_sum(a, b, ratios)
            assert np.array_equal(want, xnnpack_sum(a, b, ratios))
            assert np.array_equal(want, float_sum(a, b, ratios))
            sums += 1
    assert channels > 2000
    assert sums >= 6
