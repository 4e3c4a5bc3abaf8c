"""Channels made alike before quantization: the same function, and narrower ranges."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.backbone.architectures import ARCHITECTURES
from common.backbone.equalize import equalized
from common.backbone.networks import quantizable_network, random_network
from common.backbone.quantize import fold
from common.backbone.streams import streams

pytestmark = pytest.mark.wide

Network = Callable[[str], nn.Module]


@pytest.fixture(scope="module")
def batch() -> Tensor:
    coarse = np.random.default_rng(0).normal(size=(32, 3, 4, 4))
    return torch.from_numpy(coarse.repeat(8, 2).repeat(8, 3)).double()


@pytest.fixture(scope="module")
def network(batch: Tensor) -> Network:
    """Random weights with the batch statistics of the images, channels of very unlike ranges."""

    def make(arch: str) -> nn.Module:
        features = random_network(arch, 0)
        generator = torch.Generator().manual_seed(0)
        for module in features.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
                with torch.no_grad():
                    factors = torch.randn(len(module.weight), generator=generator)
                    module.weight.mul_((1.5 * factors).exp())
        with torch.no_grad():
            features.train()(batch.float())
        folded = fold(quantizable_network(arch, features.eval()))
        return folded.double()  # so that rounding hides nothing

    return make


def spread(features: nn.Module, batch: Tensor) -> float:
    """Largest over mean range of a stream's channels, the mean over streams."""
    found = []
    for stream in streams(features, batch):
        with torch.inference_mode():
            outputs: list[Tensor] = []
            handle = stream.writers[0].register_forward_hook(
                lambda _m, _i, out, seen=outputs: seen.append(out)
            )
            features(batch)
            handle.remove()
        width = outputs[0].amax((0, 2, 3)) - outputs[0].amin((0, 2, 3))
        found.append(float(width.max() / width.mean()))
    return float(np.mean(found))


@pytest.mark.parametrize(
    "arch",
    [
        "mobilenet_v2",
        *(pytest.param(a, marks=pytest.mark.slow) for a in ARCHITECTURES if a != "mobilenet_v2"),
    ],
)
def test_an_equalized_network_computes_the_same(network: Network, batch: Tensor, arch: str) -> None:
    folded = network(arch)
    before = {name: value.clone() for name, value in folded.state_dict().items()}
    alike = equalized(folded, [batch])
    with torch.inference_mode():
        want, got = folded(batch), alike(batch)
    assert (got - want).norm() < 1e-9 * want.norm()
    for name, value in folded.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("arch", list(ARCHITECTURES))
def test_every_stream_between_activations_is_found(
    network: Network, batch: Tensor, arch: str
) -> None:
    found = streams(network(arch), batch[:1])
    # V3-Large's first block adds to what an activation gave: that stream stays as it is.
    expected = {
        "mobilenet_v2": (7, 17),
        "mobilenet_v3_large": (5, 14),
        "mobilenet_v3_small": (5, 11),
        "efficientnet_lite0": (7, 16),
    }
    assert (len(found), sum(len(s.writers) for s in found)) == expected[arch]
    for stream in found:
        assert {w.out_channels for w in stream.writers} == {
            r.in_channels for r, _ in stream.readers
        }


@pytest.mark.slow
def test_the_ranges_of_a_streams_channels_come_closer(network: Network, batch: Tensor) -> None:
    folded = network("mobilenet_v2")
    assert spread(equalized(folded, [batch]), batch) < 0.7 * spread(folded, batch)


def test_a_dead_channel_stays_finite(network: Network, batch: Tensor) -> None:
    folded = network("mobilenet_v2")
    writer = streams(folded, batch)[0].writers[0]
    with torch.no_grad():
        writer.weight[0].zero_()
        writer.bias[0].zero_()
        want = folded(batch)
        got = equalized(folded, [batch])(batch)
    assert (got - want).norm() < 1e-9 * want.norm()


class Custom(nn.Module):
    """A sum of 1x1 convolutions, deep within modules; ``reader`` decides what becomes of it."""

    def __init__(self, reader: Callable[[Tensor, nn.Module], Tensor]) -> None:
        super().__init__()
        self.deep = nn.Sequential(
            nn.ModuleDict({"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(3, 8, 3, padding=1)})
        )
        self.next = nn.Conv2d(8, 4, 1)
        self.reader = reader

    def forward(self, x: Tensor) -> Tensor:
        layers = self.deep[0]
        return self.reader(layers["a"](x) + layers["b"](x), self.next)


def test_a_sum_is_found_however_deep_its_convolutions_lie() -> None:
    network = Custom(lambda total, following: following(total)).double().eval()
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    (found,) = streams(network, x)
    assert found.writers == list(network.deep[0].values())
    assert found.readers == [(network.next, (0, 1))]
    with torch.inference_mode():
        want, got = network(x), equalized(network, [x])(x)
    assert (got - want).norm() < 1e-12 * want.norm()


@pytest.mark.parametrize(
    ("reader", "line"),
    [
        (lambda x, following: following(x) + x.mean(), "read by aten::mean"),
        (lambda x, following: following(x + x.relu()), "read by aten::relu"),
        (lambda x, following: following(x.relu_()), "read by aten::relu_"),
        (lambda x, following: following(x + 1), "read by aten::add.Tensor"),
        (lambda x, following: following(x) + following(2 * x), "read by aten::mul"),
        (lambda x, following: following(x + x), "added to itself"),
        (lambda x, _: x, "the network's result"),
    ],
)
def test_what_is_read_otherwise_is_left_as_it_is_and_said_in_one_line(
    caplog: pytest.LogCaptureFixture, reader: Callable[[Tensor, nn.Module], Tensor], line: str
) -> None:
    caplog.set_level("INFO", "fedhead")
    network = Custom(reader).eval()
    assert streams(network, torch.randn(1, 3, 8, 8)) == []
    (said,) = caplog.messages
    assert said.startswith("channels not equalized: deep.0.a, deep.0.b: ")
    assert line in said


@pytest.mark.parametrize(
    ("following", "line"),
    [
        (nn.Conv2d(8, 4, 3, padding=1), "not a plain 1x1"),
        (nn.Conv2d(8, 4, 1, padding=1), "not a plain 1x1"),
        (nn.Conv2d(8, 4, 1, groups=2), "not a plain 1x1"),
    ],
)
def test_readers_that_pad_or_see_some_channels_alone_are_said(
    caplog: pytest.LogCaptureFixture, following: nn.Module, line: str
) -> None:
    caplog.set_level("INFO", "fedhead")
    network = Custom(lambda total, _: following(total)).eval()
    network.next = following  # type: ignore[assignment]
    assert streams(network, torch.randn(1, 3, 8, 8)) == []
    assert line in caplog.text


def test_a_convolution_that_is_called_twice_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "fedhead")
    network = Custom(lambda total, following: following(total) + following(total)).eval()
    assert streams(network, torch.randn(1, 3, 8, 8)) == []
    assert "called several times" in caplog.text


def test_of_v3_large_the_first_block_alone_is_left_as_it_is(
    network: Network, batch: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    folded = network("mobilenet_v3_large")
    caplog.set_level("INFO", "fedhead")
    streams(folded, batch[:1])
    (said,) = caplog.messages
    assert (
        said
        == "channels not equalized: 1.block.1.0: added to something that convolutions do not write"
    )
    caplog.clear()
    streams(network("mobilenet_v2"), batch[:1])
    streams(network("efficientnet_lite0"), batch[:1])
    assert not caplog.messages
