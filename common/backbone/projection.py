"""A public projection: fewer features, made of a backbone's by one matrix in exact integers.

Numpy, torch, the lite interpreter and C++ give the same bits: a float32 sum of at most ``_CHUNK``
products is a whole number below 2**24 and exact in any order, the sums of the chunks are added as
integers, and the one rounded product that follows is followed by no addition in floats.
"""

# No "from __future__ import annotations": TorchScript reads the annotations.

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import torch
from torch import Tensor, nn

from common.backbone._deprecations import accepted_deprecations
from common.backbone.engine import quantized_engine
from common.backbone.probe import probe_images
from common.backbone.spec import PROJECTED_ZERO
from common.errors import BackboneError
from common.types import Affine, FloatArray

__all__ = ["MOST_WEIGHT", "ProjectedNetwork", "Projection", "projected", "projected_network"]

MOST_WEIGHT = 127
"""Largest absolute value of a basis's entry."""

_NAMES = (
    "basis",
    "basis.center",
    "basis.multiplier",
    "basis.affine.gain",
    "basis.affine.center",
)
_CHUNK = 518
# 255 * 127 * 518 < 2**24; and 255 * 127 * 2**16 < 2**31.
_MOST_FEATURES = 2**16


@dataclass(frozen=True, eq=False)
class Projection:
    """How a backbone's features q become z.

    ``z = clip(round((q - center) @ basis * multiplier), -128, 127) + 128``; ties go to even.

    Attributes:
        basis: int8 (d, k), in [-127, 127], 1 <= k <= d.
        center: uint8 (d,).
        multiplier: float32 (k,), above 0.
        affine: how trainers see z, x = gain * (z - center), float32 (k,) each.

    Raises:
        BackboneError: an array has another type, shape or range.
    """

    basis: npt.NDArray[np.int8]
    center: npt.NDArray[np.uint8]
    multiplier: FloatArray
    affine: Affine

    def __post_init__(self) -> None:
        basis = self.basis
        if basis.dtype != np.int8 or basis.ndim != 2 or not 1 <= basis.shape[1] <= len(basis):
            raise BackboneError(
                f"projection's basis is {basis.dtype} {basis.shape}, expected int8 (d, k), k <= d"
            )
        d, k = basis.shape
        if d > _MOST_FEATURES or basis.min() < -MOST_WEIGHT:
            raise BackboneError(
                f"projection's basis is of {d} features from {basis.min()} up, expected at most "
                f"{_MOST_FEATURES} from -{MOST_WEIGHT} up"
            )
        _check("center", self.center, np.uint8, d)
        for name, array in (("multiplier", self.multiplier), ("gain", self.affine.gain)):
            _check(name, array, np.float32, k)
            if not (array > 0).all():
                raise BackboneError(f"projection's {name} is {array.min()}, expected above 0")
        _check("affine center", self.affine.center, np.float32, k)

    @property
    def num_directions(self) -> int:
        """k, the number of features that it makes."""
        return int(self.basis.shape[1])

    @property
    def payload_bytes(self) -> int:
        """Bytes of its arrays as one safetensors payload."""
        return len(safetensors.numpy.save(self.arrays()))

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """What it consists of, contiguous, by the names that a payload has."""
        own = (self.basis, self.center, self.multiplier, self.affine.gain, self.affine.center)
        return dict(zip(_NAMES, map(np.ascontiguousarray, own), strict=True))

    @classmethod
    def of(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        """From what ``arrays`` gave; further arrays are not looked at.

        Raises:
            BackboneError: one is missing; or as in the class.
        """
        if missing := [name for name in _NAMES if name not in arrays]:
            raise BackboneError(f"projection has no {missing[0]}")
        basis, center, multiplier, gain, zero = (arrays[name] for name in _NAMES)
        return cls(basis, center, multiplier, Affine(gain, zero))

    def __call__(self, q: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """uint8 (n, d) to uint8 (n, k)."""
        scaled = self.sums(q).astype(np.float32) * self.multiplier
        rounded = np.clip(np.rint(scaled), -PROJECTED_ZERO, 255 - PROJECTED_ZERO)
        z: npt.NDArray[np.uint8] = (rounded.astype(np.int16) + PROJECTED_ZERO).astype(np.uint8)
        return z

    def sums(self, q: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
        """``(q - center) @ basis``, int32 (n, k), exact."""
        total = np.zeros((len(q), self.num_directions), np.int32)
        for start in range(0, len(self.basis), _CHUNK):
            part = slice(start, start + _CHUNK)
            centered = q[:, part].astype(np.float32) - self.center[part]
            total += (centered @ self.basis[part].astype(np.float32)).astype(np.int32)
        return total


def _check(name: str, array: npt.NDArray[np.generic], dtype: type, size: int) -> None:
    if array.dtype != dtype or array.shape != (size,):
        raise BackboneError(
            f"projection's {name} is {array.dtype} {array.shape}, "
            f"expected {np.dtype(dtype)} ({size},)"
        )
    if not np.isfinite(array.astype(np.float64)).all():
        raise BackboneError(f"projection's {name} is not finite")


def projected(q: Tensor, center: Tensor, basis: Tensor, multiplier: Tensor) -> Tensor:
    """``Projection`` in TorchScript: uint8 (n, d) to uint8 (n, k)."""
    centered = q.to(torch.float32) - center.to(torch.float32)
    weights = basis.to(torch.float32)
    total = torch.zeros([q.size(0), basis.size(1)], dtype=torch.int32)
    for start in range(0, basis.size(0), 518):  # _CHUNK, which TorchScript cannot read
        part = torch.matmul(centered[:, start : start + 518], weights[start : start + 518])
        total = total + part.to(torch.int32)
    rounded = torch.round(total.to(torch.float32) * multiplier)
    z = torch.clamp(rounded, -128.0, 127.0).to(torch.int32) + 128
    return z.to(torch.uint8)


class ProjectedNetwork(nn.Module):
    """A backbone's module with a projection behind it: uint8 images to uint8 z.

    Args:
        network: scripted ``Int8Backbone``.
        projection: of its features.
    """

    center: Tensor
    basis: Tensor
    multiplier: Tensor

    def __init__(self, network: nn.Module, projection: Projection) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("center", torch.from_numpy(projection.center.copy()))
        self.register_buffer("basis", torch.from_numpy(projection.basis.copy()))
        self.register_buffer("multiplier", torch.from_numpy(projection.multiplier.copy()))

    def forward(self, images: Tensor) -> Tensor:
        """uint8 images (n, 3, H, W) to uint8 features (n, k)."""
        return projected(self.network(images), self.center, self.basis, self.multiplier)


def projected_network(
    network: torch.jit.ScriptModule, projection: Projection, engine: str
) -> torch.jit.ScriptModule:
    """``ProjectedNetwork`` compiled, for a network that was loaded for an engine.

    Raises:
        BackboneError: sums of whole numbers in float32 are not exact here, as where a setting of
            torch has them computed in bfloat16.
    """
    noise = np.resize(probe_images(32), (2, len(projection.basis)))
    # The caller may be in inference mode, and tensors made in that mode cannot be exported.
    with torch.inference_mode(False), quantized_engine(engine), accepted_deprecations():
        module = ProjectedNetwork(network, projection).eval()
        found = projected(
            torch.from_numpy(noise), module.center, module.basis, module.multiplier
        ).numpy()
        if not np.array_equal(found, projection(noise)):
            raise BackboneError(
                f"torch {torch.__version__} on this machine does not compute sums of whole numbers "
                "in float32 exactly, which projected features need"
            )
        return cast("torch.jit.ScriptModule", torch.jit.script(module))
