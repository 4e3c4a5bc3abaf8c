"""A backbone as one safetensors payload, with a checksum over everything."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError

from common.backbone.spec import BackboneSpec
from common.errors import BackboneError

__all__ = ["Arrays", "pack", "unpack"]

Arrays = dict[str, npt.NDArray[Any]]
"""The arrays of a payload: ``module`` (the TorchScript archive), ``gain`` and ``center``; and those
of ``Projection.arrays`` if there is one."""


def pack(tensors: Arrays, spec: BackboneSpec, fingerprint: str) -> bytes:
    """Arrays, description and fingerprint in one payload."""
    text = spec.to_json()
    metadata = {
        "spec": text,
        "fingerprint": fingerprint,
        "sha256": _checksum(tensors, text, fingerprint),
    }
    return safetensors.numpy.save(tensors, metadata)


def unpack(data: bytes) -> tuple[Arrays, BackboneSpec, str]:
    """What ``pack`` was given: arrays, description and fingerprint.

    Raises:
        BackboneError: it is damaged, or arrays do not have the described shape. Those of a
            projection are not looked at.
    """
    try:
        tensors = safetensors.numpy.load(data)
        metadata = _metadata(data)
        damaged = metadata["sha256"] != _checksum(
            tensors, metadata["spec"], metadata["fingerprint"]
        )
    except (SafetensorError, ValueError, KeyError, TypeError) as exc:
        raise BackboneError(f"backbone is damaged: {exc}") from exc
    if damaged:
        raise BackboneError("backbone is damaged: its content does not match its SHA-256")
    spec = BackboneSpec.from_json(metadata["spec"])
    for name in ("gain", "center"):
        got = tensors[name]
        if got.dtype != np.float32 or got.shape != (spec.num_pooled,):
            raise BackboneError(
                f"backbone's {name} is {got.dtype} {got.shape}, "
                f"expected float32 ({spec.num_pooled},)"
            )
    return tensors, spec, metadata["fingerprint"]


def _checksum(tensors: Arrays, spec: str, fingerprint: str) -> str:
    digest = hashlib.sha256(f"{spec}\n{fingerprint}\n".encode())
    first = ("module", "gain", "center")
    for name in (*first, *sorted(tensors.keys() - set(first))):
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()


def _metadata(data: bytes) -> dict[str, str]:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    return dict(header["__metadata__"])
