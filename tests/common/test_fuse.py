"""Batch norm folded in any tree of modules."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.ao.nn import intrinsic

from common.backbone.fuse import fused, keep_biases_small
from common.errors import BackboneError


def test_what_is_fused_computes_the_same_and_keeps_each_kind_of_relu() -> None:
    network = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU6()),
        nn.ModuleDict({"a": nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU())})["a"],
        nn.Conv2d(8, 4, 1, bias=False),
    )
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    network = network.double()
    network(10 * x)  # batch statistics
    want = network.eval()(x)
    folded = fused(copy.deepcopy(network).eval())
    assert torch.allclose(folded(x), want)
    joined = [m for m in folded.modules() if isinstance(m, intrinsic.ConvReLU2d)]
    assert [type(m[1]) for m in joined] == [nn.ReLU6, nn.ReLU]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert all(m.bias is not None for m in folded.modules() if isinstance(m, nn.Conv2d))


def test_a_batch_norm_without_its_convolution_is_named() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.BatchNorm2d(8)).eval()
    with pytest.raises(BackboneError, match="batch norm 2 cannot be folded"):
        fused(network)


def test_a_dead_channels_bias_fits_int32_and_its_result_stays() -> None:
    convolution = nn.Conv2d(3, 4, 3)
    with torch.no_grad():
        convolution.weight[:2] = 1e-12
        convolution.bias.copy_(torch.tensor([-7.0, 5.0, 0.1, 0.0]))
    x = torch.rand(2, 3, 8, 8)
    before, alive = convolution(x), convolution.weight[2:].clone()
    keep_biases_small(convolution)
    assert (convolution(x) - before).abs().max() < 1e-3
    assert torch.equal(convolution.weight[2:], alive)
    steps = convolution.weight.flatten(1).abs().amax(1) / 127 * 0.005  # of weights and input
    assert (convolution.bias / steps).abs().max() < 2**30
