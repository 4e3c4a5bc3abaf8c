"""Makes a frozen int8 backbone from pretrained float weights, without labels."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from common.backbone.assemble import assemble
from common.backbone.blocks import blocks_of
from common.backbone.frozen import FrozenBackbone, UInt8Array, quantized_engine
from common.backbone.int8 import Normalization, quantized
from common.backbone.module import Tapped, num_layers
from common.backbone.networks import float_network, quantizable_network, random_network
from common.backbone.quantize import fold
from common.backbone.recipe import Recipe
from common.backbone.spec import BackboneSpec
from common.backbone.weights import Weights, load_weights
from common.errors import BackboneError
from common.progress import stage
from common.seeding import Purpose, permutation

__all__ = ["draft_spec", "float_teacher", "prepare_backbone"]

_CALIBRATION_IMAGES = 256
# Of fewer images distillation learns the images: heads are as accurate without it.
_DISTILLED_IMAGES = 64
_STATISTICS_IMAGES = 512


def prepare_backbone(recipe: Recipe, images: UInt8Array) -> FrozenBackbone:
    """Quantize a pretrained network so that its int8 features follow the float ones.

    The same arguments on the same machine give the same fingerprint.

    Args:
        recipe: the settings.
        images: uint8 (n, 3, S, S), unlabelled.

    Raises:
        BackboneError: the images, weights or engine cannot be used.
        MissingExtraError: the package that holds the embedded weights is not installed.
    """
    _check_images(images, recipe.input_size)
    loaded = load_weights(recipe.arch, recipe.weights)
    with stage(f"quantizing {recipe.arch}"):
        return _prepare(recipe, loaded, images)


def _check_images(images: UInt8Array, input_size: int) -> None:
    want = (3, input_size, input_size)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != want:
        raise BackboneError(
            f"calibration images are {images.dtype} {images.shape}, expected uint8 (n, *{want})"
        )
    if len(images) == 0:
        raise BackboneError("a backbone needs calibration images, but there are none")


def _prepare(recipe: Recipe, loaded: Weights, images: UInt8Array) -> FrozenBackbone:
    order = permutation(len(images), recipe.seed, Purpose.CALIBRATION)
    sample = images[order[:_STATISTICS_IMAGES]]
    normalization = Normalization(recipe.mean, recipe.std)
    teacher = float_teacher(recipe, loaded, sample)
    with quantized_engine(recipe.engine):
        folded = fold(quantizable_network(recipe.arch, teacher))
        blocks = blocks_of(recipe.features, recipe.arch, num_layers(folded))
        network = quantized(
            folded,
            blocks,
            engine=recipe.engine,
            steps=recipe.distill_steps if len(images) >= _DISTILLED_IMAGES else 0,
            lr=recipe.distill_lr,
            sample=sample,
            images=images,
            normalization=normalization,
            seed=recipe.seed,
        ).trained
        draft = draft_spec(recipe, loaded, Tapped(teacher, blocks))
        return assemble(network, draft, normalization.batches(sample))


def float_teacher(recipe: Recipe, loaded: Weights, images: UInt8Array) -> nn.Module:
    """The float network. With random weights, its batch norms get the first images' statistics."""
    if loaded.state is None:
        features = random_network(recipe.arch, recipe.seed)
        normalization = Normalization(recipe.mean, recipe.std)
        _calibrate_batch_norm(features, normalization.batches(images[:_CALIBRATION_IMAGES]))
    else:
        features = float_network(recipe.arch, loaded.state)
    return features.eval().requires_grad_(False)


def _calibrate_batch_norm(features: nn.Module, batches: Iterable[Tensor]) -> None:
    """Give batch norms of random weights statistics, as a trained network has them."""
    for module in features.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # average over all batches
    features.train()
    with torch.no_grad():
        for batch in batches:
            # One more row, because a last batch of one small image has no variance.
            features(torch.cat([batch, -batch[:1]]))


def draft_spec(recipe: Recipe, loaded: Weights, teacher: nn.Module) -> BackboneSpec:
    """The description as far as it is known before the int8 network has seen an image."""
    return BackboneSpec(
        arch=recipe.arch,
        weights=loaded.label,
        weights_licence=loaded.licence,
        input_size=recipe.input_size,
        mean=recipe.mean,
        std=recipe.std,
        engine=recipe.engine,
        taps=(),
        feature_scaling=recipe.feature_scaling,
        probe="",
        torch_version=torch.__version__,
        float_model_bytes=_payload_bytes(teacher),
    )


def _payload_bytes(features: nn.Module) -> int:
    floats = {
        key: value.contiguous()
        for key, value in features.state_dict().items()
        if value.is_floating_point()
    }
    return len(safetensors.torch.save(floats))
