"""The last step of preparation: pooling, feature map, TorchScript, probe and fingerprint."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from common.backbone._deprecations import accepted_deprecations
from common.backbone.content import content_fingerprint
from common.backbone.frozen import FrozenBackbone
from common.backbone.module import Int8Backbone, Pool
from common.backbone.probe import probe_digest, probe_images
from common.backbone.quantize import Converted
from common.backbone.spec import BackboneSpec, FeatureScaling, Tap
from common.types import Affine

__all__ = ["assemble"]

_Float64Array = npt.NDArray[np.float64]


def assemble(network: Converted, draft: BackboneSpec, batches: Iterable[Tensor]) -> FrozenBackbone:
    """Make a frozen backbone from an int8 network; the engine must be set around this call.

    Args:
        network: the converted network, without pooling.
        draft: the description so far; the blocks and the probe are filled in here.
        batches: normalized float32 (b, 3, H, W); the pooled features are observed on them.
    """
    observed = _observe(network, batches)
    pools = [pool for _, pool in observed]
    taps = tuple(
        Tap(block, pool.num_features, pool.scale, pool.zero_point)
        for block, pool in zip(network.body.blocks, pools, strict=True)
    )
    spec = dataclasses.replace(draft, taps=taps)
    with accepted_deprecations():
        module = torch.jit.script(
            Int8Backbone(
                network.quant, network.body, spec.input_size, spec.mean, spec.std, pools
            ).eval()
        )
    affine = _joined([_affine(spec.feature_scaling, *one) for one in observed])
    features = FrozenBackbone(module, spec, affine, "").features(probe_images(spec.input_size))
    spec = dataclasses.replace(spec, probe=probe_digest(features))
    return FrozenBackbone(module, spec, affine, content_fingerprint(module, spec, affine))


def _observe(network: Converted, batches: Iterable[Tensor]) -> list[tuple[_Float64Array, Pool]]:
    """Of each block, pooled int8 activations float64 (n, d), and how to quantize them to uint8."""
    sums = []
    with torch.inference_mode(), accepted_deprecations():
        for batch in batches:
            taps = network.body(network.quant(batch))
            sums.append([tap.int_repr().sum((2, 3), dtype=torch.int64).numpy() for tap in taps])
    parts = zip(*sums, strict=True)
    return [_pool(tap, np.concatenate(part)) for tap, part in zip(taps, parts, strict=True)]


def _pool(activations: Tensor, sums: npt.NDArray[np.int64]) -> tuple[_Float64Array, Pool]:
    scale, center = float(activations.q_scale()), int(activations.q_zero_point())
    positions = activations.shape[2] * activations.shape[3]
    pooled = scale * (sums / positions - center)
    low, high = min(0.0, float(pooled.min())), max(0.0, float(pooled.max()))
    step = float(np.float32(max(high - low, 1e-6) / 255))  # float32 is what trainers multiply by
    pool = Pool(scale, center, positions, pooled.shape[1], step, round(-low / step))
    return pooled, pool


def _joined(affines: Sequence[Affine]) -> Affine:
    gains, centers = zip(*((affine.gain, affine.center) for affine in affines), strict=True)
    return Affine(np.concatenate(gains), np.concatenate(centers))


def _plain(pool: Pool) -> Affine:
    return Affine(
        np.full(pool.num_features, pool.scale, np.float32),
        np.full(pool.num_features, pool.zero_point, np.float32),
    )


def _affine(scaling: FeatureScaling, pooled: _Float64Array, pool: Pool) -> Affine:
    """How trainers see the features; see ``FeatureScaling``."""
    if scaling == "none":
        return _plain(pool)
    q = pooled / pool.scale + pool.zero_point
    std = q.std(axis=0)
    typical = max(float(np.sqrt(np.mean(std**2))), 1.0)
    if scaling == "center":
        gain = np.full(len(std), 1.0 / typical)
    else:
        # A feature that hardly varies on these images is mostly rounding noise here, but may vary
        # on others. So no feature is scaled up more than ten times as much as the typical one, and
        # none so far that one step of its uint8 becomes more than 1.
        gain = 1.0 / np.maximum(std, max(0.1 * typical, 1.0))
    return Affine(gain.astype(np.float32), q.mean(axis=0).astype(np.float32))
