"""The cache of prepared backbones.

A backbone is found without importing torchvision, which costs seconds, unless the weights are
torchvision's.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from pathlib import Path

import numpy as np
import torch

from common.apart import in_fresh_process, is_reused
from common.backbone.directions import find_projection
from common.backbone.frozen import FrozenBackbone, UInt8Array, load_by_fingerprint, store
from common.backbone.recipe import METHOD, Recipe
from common.backbone.sources import weights_identity
from common.backbone.spec import Directions
from common.errors import BackboneError
from common.features import extract
from common.files import write_atomic
from common.readback import own_check

__all__ = ["cached_backbone", "cached_projection"]

_log = logging.getLogger("fedhead")
# A step of the deepest uint8 features. Trained networks have 1e-5 to 0.1, even on images that
# hardly differ. If the batch norms have never seen an image, each layer shrinks its input, and this
# step is about 1e-8.
_LEAST_STEP = 1e-7


def cached_backbone(recipe: Recipe, images: UInt8Array, cache: Path) -> FrozenBackbone:
    """``prepare_backbone``, done only once for the same recipe, images, weights and torch.

    Args:
        recipe: the settings.
        images: uint8 (n, 3, S, S), unlabelled.
        cache: root of the caches; backbones lie in ``backbones/<fingerprint>`` below it.

    Raises:
        BackboneError, MissingExtraError: as in ``prepare_backbone``.
    """
    backbone = _cached(recipe, images, cache)
    if backbone.spec.taps[-1].scale < _LEAST_STEP:
        _log.warning(
            "%s: features hardly vary over the calibration images: were these weights trained?",
            recipe.weights,
        )
    return backbone


def _cached(recipe: Recipe, images: UInt8Array, cache: Path) -> FrozenBackbone:
    key_file = cache / "backbones" / "keys" / _key(recipe, images)
    if key_file.exists():
        kept = _from_key(key_file, cache)
        if kept is not None:
            return kept
    backbone = _prepared(recipe, images)
    store(backbone, cache)
    if _key(recipe, images) == key_file.name:  # the weights were not replaced meanwhile
        write_atomic(key_file, backbone.fingerprint.encode())
    # Loaded again, as in later runs: a backbone that was just made is exported with other bytes.
    return load_by_fingerprint(backbone.fingerprint, cache) or backbone


def cached_projection(
    base: FrozenBackbone, images: UInt8Array, wanted: Directions, seed: int, cache: Path
) -> FrozenBackbone:
    """The backbone with projected features; the projection is found only once.

    Args:
        base: a backbone from the cache.
        images: uint8 (n, 3, S, S), unlabelled.
        wanted: see ``find_projection``.
        seed: likewise.
        cache: root of the caches, as in ``cached_backbone``.

    Raises:
        BackboneError: as in ``find_projection``.
    """
    digest = _digest(images)
    facts = (base.fingerprint, digest, images.shape, wanted, seed, np.__version__)
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    key_file = cache / "backbones" / "keys" / key
    kept = _from_key(key_file, cache) if key_file.exists() else None
    if kept is not None and kept.projection is not None:
        backbone = base.projected(kept.projection)
    else:
        q = extract(base, images.__getitem__, len(images), content_key=digest, cache=cache)
        backbone = base.projected(find_projection(q, base.affine, wanted, seed))
        store(backbone, cache)
        write_atomic(key_file, backbone.fingerprint.encode())
    _tell_random(len(set(map(_digest, images))), backbone.spec.projection)
    return backbone


def _tell_random(images: int, directions: int) -> None:
    if (random := directions - (images - 1)) > 0:
        rest = "one more is random" if random == 1 else f"the other {random} are random"
        _log.warning(
            "backbone.projection: %d calibration images give %d directions, %s: heads are more "
            "accurate with more images",
            images, images - 1, rest,
        )  # fmt: skip


def _digest(images: UInt8Array) -> str:
    return hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()


def _prepared(recipe: Recipe, images: UInt8Array) -> FrozenBackbone:
    if is_reused() and has_scripted():
        data = in_fresh_process(_prepared_bytes, recipe, images)
        return FrozenBackbone.from_bytes(data, opened=False)
    from common.backbone.prepare import prepare_backbone

    return prepare_backbone(recipe, images)


def _prepared_bytes(recipe: Recipe, images: UInt8Array) -> bytes:
    return _prepared(recipe, images).to_bytes()


def has_scripted() -> bool:
    """Whether this process has compiled a module to TorchScript."""
    from torch.jit._recursive import concrete_type_store

    return bool(concrete_type_store.type_store)


@own_check("key of a backbone in the cache")
def _from_key(key_file: Path, cache: Path) -> FrozenBackbone | None:
    try:
        return load_by_fingerprint(key_file.read_text("ascii").strip(), cache)
    except (BackboneError, OSError, ValueError):
        _log.warning("backbone cache entry %s is damaged: preparing again", key_file.name[:12])
        return None


def _key(recipe: Recipe, images: UInt8Array) -> str:
    facts = {
        **dataclasses.asdict(recipe),
        "method": METHOD,
        "weights": weights_identity(recipe.arch, recipe.weights),
        "images": _digest(images),
        "shape": images.shape,
        "torch": torch.__version__,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
