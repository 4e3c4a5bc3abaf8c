"""Structured pruning: fewer expansion channels in each inverted residual block.

The result is smaller and faster on any runtime, because whole channels are removed, not single
weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

__all__ = ["Bottleneck", "bottlenecks", "pruned"]

_MULTIPLE = 8  # channels that kernels process at a time
_RIDGE = 1e-4  # share of the mean variance; without it, dead channels' covariance is singular


@dataclass(frozen=True)
class Bottleneck:
    """The convolutions of one block between its expansion and its projection.

    Attributes:
        expand: 1x1, to the expansion channels.
        depthwise: over each expansion channel.
        squeeze: squeeze-and-excitation's, from the expansion channels; None: there is none.
        excite: squeeze-and-excitation's, to the expansion channels; None: there is none.
        project: 1x1, from the expansion channels.
    """

    expand: nn.Conv2d
    depthwise: nn.Conv2d
    squeeze: nn.Conv2d | None
    excite: nn.Conv2d | None
    project: nn.Conv2d

    @property
    def channels(self) -> int:
        return self.expand.out_channels


class _Moments:
    """Mean and covariance of a convolution's input over images and positions."""

    def __init__(self, channels: int) -> None:
        self._products = np.zeros((channels, channels))
        self._sums, self._count = np.zeros(channels), 0

    def __call__(self, _module: nn.Module, inputs: tuple[Tensor]) -> None:
        values = inputs[0].transpose(0, 1).flatten(1)
        self._products += (values @ values.t()).double().numpy()
        self._sums += values.sum(1).double().numpy()
        self._count += values.shape[1]

    def mean(self) -> npt.NDArray[np.float64]:
        mean: npt.NDArray[np.float64] = self._sums / self._count
        return mean

    def covariance(self) -> npt.NDArray[np.float64]:
        mean = self.mean()
        covariance: npt.NDArray[np.float64] = self._products / self._count - np.outer(mean, mean)
        return covariance


def bottlenecks(features: nn.Module) -> list[Bottleneck]:
    """The blocks with an expansion, in order; other blocks have no channels to remove.

    Args:
        features: the network without classifier, batch norm folded. Its modules may be nested in
            any way, but a block's convolutions follow each other, with squeeze-and-excitation's.
    """
    convolutions = [m for m in features.modules() if isinstance(m, nn.Conv2d)]
    found = []
    for i, (expand, depthwise) in enumerate(pairwise(convolutions)):
        channels = expand.out_channels
        if not (_is_plain(expand) and depthwise.groups == depthwise.in_channels == channels > 1):
            continue
        rest = convolutions[i + 2 : i + 5]
        reads = [_is_plain(other) and other.in_channels == channels for other in rest]
        if reads == [True, False, True] and rest[1].out_channels == channels:
            found.append(Bottleneck(expand, depthwise, *rest))
        elif reads[:1] == [True]:
            found.append(Bottleneck(expand, depthwise, None, None, rest[0]))
    return found


def _is_plain(convolution: nn.Conv2d) -> bool:
    return convolution.kernel_size == (1, 1) and convolution.groups == 1


def pruned(folded: nn.Module, rate: float, batches: Iterable[Tensor]) -> nn.Module:
    """A copy with fewer expansion channels and newly fitted projections.

    Each block loses the channels that add least to the variance of the projection's output. The
    projection of the others is the least squares fit to the output of all channels.

    He, Zhang, Sun: "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017,
    arXiv 1707.06168. Differs from the paper: channels are chosen by their share of the variance
    instead of by LASSO, and all blocks are fitted to the unpruned network at once, because
    distillation follows.

    Args:
        folded: the float network, batch norm folded; not changed.
        rate: share of the channels to remove, in [0, 1); a multiple of 8 is kept.
        batches: normalized float32 (b, 3, H, W); the channels are measured on them.
    """
    features = copy.deepcopy(folded).eval().requires_grad_(False)
    blocks = bottlenecks(features)
    moments = [_Moments(block.channels) for block in blocks]
    handles = [
        block.project.register_forward_pre_hook(own)
        for block, own in zip(blocks, moments, strict=True)
    ]
    with torch.inference_mode():
        for batch in batches:
            features(batch)
    for handle in handles:
        handle.remove()
    for block, own in zip(blocks, moments, strict=True):
        _prune(block, rate, own)
    return features


def _prune(block: Bottleneck, rate: float, moments: _Moments) -> None:
    weight = block.project.weight.flatten(1).double().numpy()
    mean, covariance = moments.mean(), moments.covariance()
    share = np.diag(covariance) * (weight**2).sum(axis=0)
    count = max(_MULTIPLE, round(block.channels * (1 - rate) / _MULTIPLE) * _MULTIPLE)
    kept = np.sort(np.argsort(-share, kind="stable")[:count])
    inner = covariance[np.ix_(kept, kept)]
    ridge = _RIDGE * max(float(np.trace(inner)) / len(kept), 1e-12)
    fitted = np.linalg.solve(inner + ridge * np.eye(len(kept)), covariance[kept] @ weight.T).T
    shift = weight @ mean - fitted @ mean[kept]

    index = torch.from_numpy(kept)
    _keep_outputs(block.expand, index)
    _keep_outputs(block.depthwise, index)
    block.depthwise.in_channels = block.depthwise.groups = len(kept)
    if block.squeeze is not None and block.excite is not None:
        block.squeeze.weight = _parameter(block.squeeze.weight[:, index])
        block.squeeze.in_channels = len(kept)
        _keep_outputs(block.excite, index)
    block.project.weight = _parameter(torch.from_numpy(fitted).float()[:, :, None, None])
    block.project.in_channels = len(kept)
    block.project.bias = _parameter(_bias(block.project) + torch.from_numpy(shift).float())


def _keep_outputs(convolution: nn.Conv2d, index: Tensor) -> None:
    convolution.weight = _parameter(convolution.weight[index])
    convolution.bias = _parameter(_bias(convolution)[index])
    convolution.out_channels = len(index)


def _bias(convolution: nn.Conv2d) -> Tensor:
    """A convolution's bias; folding gives every convolution one."""
    if convolution.bias is None:
        return torch.zeros(convolution.out_channels)
    return convolution.bias


def _parameter(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach().clone().contiguous(), requires_grad=False)
