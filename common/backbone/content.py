"""The fingerprint: a hash of everything that a backbone computes with, not of its file.

TorchScript archives hold debug paths and mangled names, so equal networks differ as files.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from common.backbone._deprecations import accepted_deprecations
from common.backbone.projection import Projection
from common.backbone.spec import BackboneSpec
from common.types import Affine

__all__ = ["content_fingerprint", "projected_fingerprint"]


def _add_tensor(digest: hashlib._Hash, name: str, tensor: torch.Tensor) -> None:
    array = np.ascontiguousarray(tensor.detach().cpu().numpy())
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    digest.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
    digest.update(little.tobytes())


def _add_convolution(digest: hashlib._Hash, name: str, packed: torch.ScriptObject) -> None:
    weight, bias = torch.ops.quantized.conv2d_unpack(packed)
    geometry = [getattr(packed, key)() for key in ("stride", "padding", "dilation", "groups")]
    digest.update(f"{name} {geometry}\n".encode())
    _add_tensor(digest, f"{name}.weight", weight.int_repr())
    _add_tensor(digest, f"{name}.scales", weight.q_per_channel_scales())
    _add_tensor(digest, f"{name}.zero_points", weight.q_per_channel_zero_points())
    if bias is not None:
        _add_tensor(digest, f"{name}.bias", bias)


def content_fingerprint(module: torch.jit.ScriptModule, spec: BackboneSpec, affine: Affine) -> str:
    """SHA-256 over description, structure, int8 weights, scales, biases and feature map.

    The engine that the module was loaded with must still be set.

    Args:
        module: a scripted ``Int8Backbone``, fresh or loaded.
        spec: its description; labels and versions do not count.
        affine: how trainers see the features.

    Returns:
        64 hex digits.
    """
    digest = hashlib.sha256(spec.content_json().encode())
    with accepted_deprecations():
        for name, child in module.named_modules():
            digest.update(f"{name}: {child.original_name}\n".encode())
            for buffer_name, buffer in child.named_buffers(recurse=False):
                _add_tensor(digest, f"{name}.{buffer_name}", buffer)
            for key in ("scale", "zero_point", "blocks"):
                value = getattr(child, key, None)
                if isinstance(value, int | float | list):
                    digest.update(f"{name}.{key} {value!r}\n".encode())
            if hasattr(child, "_packed_params"):
                _add_convolution(digest, name, child._packed_params)
    _add_tensor(digest, "gain", torch.from_numpy(affine.gain))
    _add_tensor(digest, "center", torch.from_numpy(affine.center))
    return digest.hexdigest()


def projected_fingerprint(base: str, projection: Projection) -> str:
    """SHA-256 over the fingerprint of a backbone and what projects its features; 64 hex digits."""
    digest = hashlib.sha256(f"{base}\n".encode())
    for name, array in projection.arrays().items():
        _add_tensor(digest, name, torch.from_numpy(np.array(array)))
    return digest.hexdigest()
