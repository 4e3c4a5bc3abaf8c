"""Give the channels of a float network similar ranges, without changing its function.

The outputs of the blocks' last convolutions are added up along the skip connections and read by
1x1 convolutions, with no activation in between. So each channel of such a stream can be shifted
and scaled where it is written, and shifted and scaled back where it is read. One step of uint8 then
suits all channels; before, the widest channel makes the steps too coarse for all others.
``streams`` finds the streams of any network and logs those that it leaves out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from common.backbone.streams import Stream, streams

__all__ = ["equalized"]

# From channels unchanged (0) to all of one width (1). Not 1: a channel that is made narrower needs
# larger weights in its readers, and these are rounded too.
_EXPONENT = 0.5
_NARROWEST = 1e-3  # as a share of the widest; a dead channel has no width


class _Range:
    """Smallest and largest value of each channel, averaged over batches, as observers do it."""

    def __init__(self) -> None:
        self._low: list[Tensor] = []
        self._high: list[Tensor] = []

    def see(self, values: Tensor) -> None:
        self._low.append(values.amin((0, 2, 3)))
        self._high.append(values.amax((0, 2, 3)))

    @property
    def middle(self) -> Tensor:
        return (torch.stack(self._high) + torch.stack(self._low)).mean(0) / 2

    @property
    def width(self) -> Tensor:
        return (torch.stack(self._high) - torch.stack(self._low)).mean(0)


def equalized(folded: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """A network that computes the same, up to rounding, with channels of similar ranges.

    Nagel, van Baalen, Blankevoort, Welling: "Data-Free Quantization Through Weight Equalization
    and Bias Correction", ICCV 2019, arXiv 1906.04721, section 4.1. Differs from the paper: ranges
    are those of activations, observed on images; only streams without an activation are scaled,
    which is exact for ReLU6 and hard-swish networks too; and channels are also centred.

    Args:
        folded: the network without classifier, batch norm folded; not changed.
        batches: normalized float32 (b, 3, H, W); the ranges are observed on them.
    """
    features = copy.deepcopy(folded).eval().requires_grad_(False)
    batches = iter(batches)
    first = next(batches)
    found = streams(features, first[:1])
    written = [[_Range() for _ in stream.writers] for stream in found]
    read = [[_Range() for _ in stream.readers] for stream in found]
    handles = []
    for stream, outputs, inputs in zip(found, written, read, strict=True):
        for writer, own in zip(stream.writers, outputs, strict=True):
            handles.append(writer.register_forward_hook(_sees_output(own)))
        for (reader, _), own in zip(stream.readers, inputs, strict=True):
            handles.append(reader.register_forward_pre_hook(_sees_input(own)))
    with torch.inference_mode():
        for batch in chain([first], batches):
            features(batch)
    for handle in handles:
        handle.remove()
    for stream, outputs, inputs in zip(found, written, read, strict=True):
        width = torch.stack([own.width for own in (*outputs, *inputs)]).amax(0)
        _rescale(stream, [own.middle for own in outputs], _scale(width))
    return features


def _scale(width: Tensor) -> Tensor:
    """The divisor of each channel; the geometric mean of all is 1."""
    scale = width.clamp_min(_NARROWEST * float(width.max())).clamp_min(1e-12).pow(_EXPONENT)
    return scale / scale.log().mean().exp()


def _rescale(stream: Stream, middles: Sequence[Tensor], scale: Tensor) -> None:
    for writer, middle in zip(stream.writers, middles, strict=True):
        _bias(writer).sub_(middle).div_(scale)
        writer.weight.div_(scale[:, None, None, None])
    for reader, writers in stream.readers:
        shift = torch.stack([middles[i] for i in writers]).sum(0)
        _bias(reader).add_(reader.weight[:, :, 0, 0] @ shift)
        reader.weight.mul_(scale[None, :, None, None])


def _bias(convolution: nn.Conv2d) -> Tensor:
    bias: Tensor = convolution.bias  # type: ignore[assignment]  # folding has given it one
    return bias


def _sees_output(seen: _Range) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    return lambda _module, _inputs, output: seen.see(output)


def _sees_input(seen: _Range) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    return lambda _module, inputs: seen.see(inputs[0])
