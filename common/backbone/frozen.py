"""A frozen int8 backbone: compute features, save, load, send, find by fingerprint.

Device path: torch, but never torchvision.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import torch
from safetensors import SafetensorError

from common.backbone._deprecations import accepted_deprecations
from common.backbone.content import content_fingerprint
from common.backbone.engine import quantized_engine
from common.backbone.spec import BackboneSpec
from common.errors import BackboneError
from common.files import write_atomic
from common.types import Affine

__all__ = ["FrozenBackbone", "load_by_fingerprint", "probe_images", "quantized_engine", "store"]

UInt8Array = npt.NDArray[np.uint8]
_Arrays = dict[str, npt.NDArray[Any]]  # safetensors' own type

_FILE = "backbone.safetensors"
_log = logging.getLogger("fedhead")


class FrozenBackbone:
    """An int8 network that turns images into uint8 features, always the same.

    Args:
        module: scripted ``Int8Backbone``.
        spec: its description.
        affine: how trainers see the features, ``x = gain * (q - center)``.
        fingerprint: SHA-256 over all three; both sides of a federation compare it.
    """

    def __init__(
        self, module: torch.jit.ScriptModule, spec: BackboneSpec, affine: Affine, fingerprint: str
    ) -> None:
        self.module = module
        self.spec = spec
        self.affine = affine
        self.fingerprint = fingerprint

    def __repr__(self) -> str:
        return (
            f"FrozenBackbone({self.spec.arch}, {self.spec.input_size} px, {self.spec.engine}, "
            f"{self.fingerprint[:12]})"
        )

    def features(self, images: torch.Tensor | UInt8Array) -> UInt8Array:
        """Pooled features of a batch; they do not depend on how images are batched.

        Args:
            images: uint8 (n, 3, H, W), n >= 1, H = W = ``spec.input_size``, RGB.

        Returns:
            uint8 (n, d).

        Raises:
            BackboneError: another dtype or shape, or an empty batch.
        """
        tensor = images if isinstance(images, torch.Tensor) else _as_tensor(images)
        want = (3, self.spec.input_size, self.spec.input_size)
        if tensor.dtype != torch.uint8:
            raise BackboneError(f"images are {tensor.dtype}, expected uint8 pixels")
        if tensor.ndim != 4 or tuple(tensor.shape[1:]) != want:
            raise BackboneError(f"images have shape {tuple(tensor.shape)}, expected (n, *{want})")
        if len(tensor) == 0:
            raise BackboneError("the batch holds no image")
        with quantized_engine(self.spec.engine), torch.inference_mode():
            out: UInt8Array = self.module(tensor).numpy()
        return out

    def to_bytes(self) -> bytes:
        """One safetensors payload: TorchScript, feature map and description."""
        buffer = io.BytesIO()
        with quantized_engine(self.spec.engine), accepted_deprecations():
            torch.jit.save(self.module, buffer)
        tensors: _Arrays = {
            "module": np.frombuffer(buffer.getvalue(), np.uint8),
            "gain": self.affine.gain,
            "center": self.affine.center,
        }
        spec = self.spec.to_json()
        metadata = {
            "spec": spec,
            "fingerprint": self.fingerprint,
            "sha256": _checksum(tensors, spec, self.fingerprint),
        }
        return safetensors.numpy.save(tensors, metadata)

    @classmethod
    def from_bytes(cls, data: bytes, expected_fingerprint: str | None = None) -> FrozenBackbone:
        """Read ``to_bytes``' payload. Nothing in it is unpickled.

        Raises:
            BackboneError: damaged, of another fingerprint, or for an engine this torch lacks.
        """
        tensors, spec, stated = _unpack(data)
        if expected_fingerprint is not None and stated != expected_fingerprint:
            raise BackboneError(
                f"backbone has fingerprint {stated[:12]}, expected {expected_fingerprint[:12]}"
            )
        affine = Affine(tensors["gain"], tensors["center"])
        with quantized_engine(spec.engine), accepted_deprecations():
            try:
                archive = io.BytesIO(tensors["module"].tobytes())
                module = torch.jit.load(archive)  # type: ignore[no-untyped-call]
                computed = content_fingerprint(module, spec, affine)
            except (RuntimeError, AttributeError) as exc:
                reason = str(exc).strip().splitlines()[0]
                raise BackboneError(f"backbone cannot be loaded: {reason}") from exc
        if computed != stated:
            raise BackboneError(
                f"backbone says fingerprint {stated[:12]}, but its content has {computed[:12]}"
            )
        backbone = cls(module, spec, affine, stated)
        backbone.check_probe()
        return backbone

    def save(self, folder: Path) -> None:
        """Write ``to_bytes`` into the folder, whole or not at all."""
        write_atomic(Path(folder) / _FILE, self.to_bytes())

    @classmethod
    def load(cls, folder: Path, expected_fingerprint: str | None = None) -> FrozenBackbone:
        """Read what ``save`` wrote.

        Raises:
            BackboneError: missing or unreadable, and as ``from_bytes`` says.
        """
        try:
            data = (Path(folder) / _FILE).read_bytes()
        except OSError as exc:
            raise BackboneError(f"no backbone in {folder}: {exc.strerror or exc}") from exc
        return cls.from_bytes(data, expected_fingerprint)

    def check_probe(self) -> None:
        """Compute the features of two fixed images and compare them with the maker's.

        Raises:
            BackboneError: the bits differ on qnnpack, which promises them on every machine.
                Other engines choose their arithmetic by processor: there it is a warning.
        """
        computed = probe_digest(self.features(probe_images(self.spec.input_size)))
        if computed == self.spec.probe:
            return
        line = (
            f"backbone {self.fingerprint[:12]} computes other features on this machine "
            f"than where it was made (engine {self.spec.engine}, torch {torch.__version__})"
        )
        if self.spec.engine == "qnnpack":
            raise BackboneError(line)
        _log.warning("%s", line)


def _as_tensor(images: UInt8Array) -> torch.Tensor:
    if images.dtype != np.uint8:
        raise BackboneError(f"images are {images.dtype}, expected uint8 pixels")
    # torch warns about arrays that cannot be written, such as mapped files: those are copied.
    return torch.from_numpy(np.require(images, requirements=["C", "W"]))


def probe_images(input_size: int) -> UInt8Array:
    """Two noise images every platform can make again, uint8 (2, 3, H, W)."""
    count = 2 * 3 * input_size * input_size
    state = np.arange(1, count + 1, dtype=np.uint64)
    state = (state ^ (state >> np.uint64(7))) * np.uint64(0x9E3779B97F4A7C15)
    pixels = (state >> np.uint64(56)).astype(np.uint8)
    return pixels.reshape(2, 3, input_size, input_size)


def probe_digest(features: UInt8Array) -> str:
    """SHA-256 of the probe images' features."""
    return hashlib.sha256(np.ascontiguousarray(features).tobytes()).hexdigest()


def _checksum(tensors: _Arrays, spec: str, fingerprint: str) -> str:
    digest = hashlib.sha256(f"{spec}\n{fingerprint}\n".encode())
    for name in ("module", "gain", "center"):
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()


def _unpack(data: bytes) -> tuple[_Arrays, BackboneSpec, str]:
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
        if got.dtype != np.float32 or got.shape != (spec.num_features,):
            raise BackboneError(
                f"backbone's {name} is {got.dtype} {got.shape}, "
                f"expected float32 ({spec.num_features},)"
            )
    return tensors, spec, metadata["fingerprint"]


def _metadata(data: bytes) -> dict[str, str]:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    return dict(header["__metadata__"])


def store(backbone: FrozenBackbone, cache: Path) -> Path:
    """Keep a backbone under its fingerprint; returns its folder."""
    folder = _folder(cache, backbone.fingerprint)
    backbone.save(folder)
    return folder


def load_by_fingerprint(fingerprint: str, cache: Path) -> FrozenBackbone | None:
    """The backbone of this fingerprint, or None if it is not there or damaged."""
    folder = _folder(cache, fingerprint)
    if not (folder / _FILE).exists():
        return None
    try:
        return FrozenBackbone.load(folder, fingerprint)
    except BackboneError as exc:
        _log.warning("cached backbone %s is not usable: %s", fingerprint[:12], exc)
        return None


def _folder(cache: Path, fingerprint: str) -> Path:
    if len(fingerprint) != 64 or not set(fingerprint) <= set("0123456789abcdef"):
        raise BackboneError(f"{fingerprint!r} is not a fingerprint (64 hex digits)")
    return Path(cache) / "backbones" / fingerprint
