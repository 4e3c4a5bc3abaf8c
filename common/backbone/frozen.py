"""A frozen int8 backbone: compute features, save, load, send, find by fingerprint.

Device path: torch, but never torchvision.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Lock
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from common.backbone._deprecations import accepted_deprecations
from common.backbone.content import content_fingerprint
from common.backbone.engine import quantized_engine
from common.backbone.payload import Arrays, pack, unpack
from common.backbone.spec import BackboneSpec
from common.cache import note_use
from common.errors import BackboneError
from common.files import write_atomic
from common.readback import own_check
from common.types import Affine

__all__ = [
    "FrozenBackbone",
    "backbone_file",
    "load_by_fingerprint",
    "probe_images",
    "quantized_engine",
    "store",
]

UInt8Array = npt.NDArray[np.uint8]

_FILE = "backbone.safetensors"
_log = logging.getLogger("fedhead")


class FrozenBackbone:
    """An int8 network that turns images into uint8 features, always the same.

    Args:
        module: scripted ``Int8Backbone``, or what makes it when it is first needed.
        spec: its description.
        affine: how trainers see the features, ``x = gain * (q - center)``.
        fingerprint: SHA-256 over all three; both sides of a federation compare it.
    """

    def __init__(
        self,
        module: torch.jit.ScriptModule | Callable[[], torch.jit.ScriptModule],
        spec: BackboneSpec,
        affine: Affine,
        fingerprint: str,
    ) -> None:
        self._module, self._lock = module, Lock()
        self.spec = spec
        self.affine = affine
        self.fingerprint = fingerprint

    def __repr__(self) -> str:
        return (
            f"FrozenBackbone({self.spec.arch}, {self.spec.input_size} px, {self.spec.engine}, "
            f"{self.fingerprint[:12]})"
        )

    @property
    def module(self) -> torch.jit.ScriptModule:
        """The network.

        Raises:
            BackboneError: it was not loaded before, and ``from_bytes`` says why it cannot be.
        """
        with self._lock:  # several threads may compute features
            if not isinstance(self._module, torch.jit.ScriptModule):
                self._module = self._module()
            return self._module

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
        tensors: Arrays = {
            "module": np.frombuffer(buffer.getvalue(), np.uint8),
            "gain": self.affine.gain,
            "center": self.affine.center,
        }
        return pack(tensors, self.spec, self.fingerprint)

    @classmethod
    def from_bytes(
        cls, data: bytes, expected_fingerprint: str | None = None, *, opened: bool = True
    ) -> FrozenBackbone:
        """Read ``to_bytes``' payload. Nothing in it is unpickled.

        Args:
            data: the payload.
            expected_fingerprint: None: any.
            opened: False: the network is loaded, and its content compared with the fingerprint,
                when features are first computed: most of the work, and cached features need
                none of it. For payloads that this machine has checked before.

        Raises:
            BackboneError: damaged, of another fingerprint, or for an engine this torch lacks.
        """
        tensors, spec, stated = unpack(data)
        if expected_fingerprint is not None and stated != expected_fingerprint:
            raise BackboneError(
                f"backbone has fingerprint {stated[:12]}, expected {expected_fingerprint[:12]}"
            )
        affine = Affine(tensors["gain"], tensors["center"])
        open_module = partial(_open, tensors["module"], spec, affine, stated)
        return cls(open_module() if opened else open_module, spec, affine, stated)

    def save(self, folder: Path) -> None:
        """Write ``to_bytes`` into the folder, whole or not at all."""
        write_atomic(Path(folder) / _FILE, self.to_bytes())

    @classmethod
    def load(
        cls, folder: Path, expected_fingerprint: str | None = None, *, opened: bool = True
    ) -> FrozenBackbone:
        """Read what ``save`` wrote; ``opened`` as in ``from_bytes``.

        Raises:
            BackboneError: missing or unreadable, and as ``from_bytes`` says.
        """
        try:
            data = (Path(folder) / _FILE).read_bytes()
        except OSError as exc:
            raise BackboneError(f"no backbone in {folder}: {exc.strerror or exc}") from exc
        return cls.from_bytes(data, expected_fingerprint, opened=opened)


def _open(
    archive: npt.NDArray[np.uint8], spec: BackboneSpec, affine: Affine, stated: str
) -> torch.jit.ScriptModule:
    """The network in an archive, if it is what the fingerprint states."""
    # Whoever needs it first may be in inference mode: tensors of that kind cannot be exported.
    with torch.inference_mode(False), quantized_engine(spec.engine), accepted_deprecations():
        try:
            module = torch.jit.load(io.BytesIO(archive.tobytes()))  # type: ignore[no-untyped-call]
            computed = content_fingerprint(module, spec, affine)
        except (RuntimeError, AttributeError) as exc:
            reason = str(exc).strip().splitlines()[0]
            raise BackboneError(f"backbone cannot be loaded: {reason}") from exc
    if computed != stated:
        raise BackboneError(
            f"backbone says fingerprint {stated[:12]}, but its content has {computed[:12]}"
        )
    _check_probe(FrozenBackbone(module, spec, affine, stated))
    return cast("torch.jit.ScriptModule", module)


def _check_probe(backbone: FrozenBackbone) -> None:
    """Compute the features of two fixed images and compare them with the maker's.

    Raises:
        BackboneError: the bits differ on qnnpack, which promises them on every machine.
            Other engines choose their arithmetic by processor: there it is a warning.
    """
    spec = backbone.spec
    if probe_digest(backbone.features(probe_images(spec.input_size))) == spec.probe:
        return
    line = (
        f"backbone {backbone.fingerprint[:12]} computes other features on this machine "
        f"than where it was made (engine {spec.engine}, torch {torch.__version__})"
    )
    if spec.engine == "qnnpack":
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


def store(backbone: FrozenBackbone, cache: Path) -> Path:
    """Keep a backbone under its fingerprint; returns its folder."""
    folder = backbone_file(cache, backbone.fingerprint).parent
    backbone.save(folder)
    return folder


@own_check("backbone in the cache")
def load_by_fingerprint(fingerprint: str, cache: Path) -> FrozenBackbone | None:
    """The backbone of this fingerprint, not opened; None if it is not there or damaged."""
    file = backbone_file(cache, fingerprint)
    if not file.exists():
        return None
    note_use(file.parent)
    try:
        return FrozenBackbone.load(file.parent, fingerprint, opened=False)
    except BackboneError as exc:
        _log.warning("cached backbone %s is not usable: %s", fingerprint[:12], exc)
        return None


def backbone_file(cache: Path, fingerprint: str) -> Path:
    """Where a cache keeps the payload of a fingerprint.

    Raises:
        BackboneError: not a fingerprint.
    """
    if len(fingerprint) != 64 or not set(fingerprint) <= set("0123456789abcdef"):
        raise BackboneError(f"{fingerprint!r} is not a fingerprint (64 hex digits)")
    return Path(cache) / "backbones" / fingerprint / _FILE
