"""A frozen int8 backbone: it computes features; it is saved, loaded, sent, found by fingerprint.

Device path: torch, but never torchvision.
"""

from __future__ import annotations

import dataclasses
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
from common.backbone.content import content_fingerprint, projected_fingerprint
from common.backbone.engine import quantized_engine
from common.backbone.payload import Arrays, pack, unpack
from common.backbone.probe import probe_digest, probe_images
from common.backbone.projection import Projection, projected_network
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
    """An int8 network that turns images into uint8 features, the same ones every time.

    Args:
        module: scripted ``Int8Backbone``, or a function that makes it when it is first needed.
        spec: its description.
        affine: how trainers see the features, ``x = gain * (q - center)``.
        fingerprint: SHA-256 over all three; server and clients compare it.
        projection: if the module projects the features of another: how.
        base: that other backbone.
    """

    def __init__(
        self,
        module: torch.jit.ScriptModule | Callable[[], torch.jit.ScriptModule],
        spec: BackboneSpec,
        affine: Affine,
        fingerprint: str,
        projection: Projection | None = None,
        base: FrozenBackbone | None = None,
    ) -> None:
        self._module, self._lock = module, Lock()
        self.spec = spec
        self.affine = affine
        self.fingerprint = fingerprint
        self.projection, self._base = projection, base

    def __repr__(self) -> str:
        directions = f"{self.spec.projection} directions, " if self.projection else ""
        return (
            f"FrozenBackbone({self.spec.arch}, {self.spec.input_size} px, {self.spec.engine}, "
            f"{directions}{self.fingerprint[:12]})"
        )

    @property
    def base(self) -> FrozenBackbone:
        """The backbone without its projection; itself if it has none."""
        return self._base or self

    def projected(self, projection: Projection) -> FrozenBackbone:
        """The same network, with projected features.

        Raises:
            BackboneError: the projection is of another number of features.
        """
        if len(projection.basis) != self.spec.num_features:
            raise BackboneError(
                f"projection's basis is of {len(projection.basis)} features, but the backbone has "
                f"{self.spec.num_features}"
            )
        return FrozenBackbone(
            lambda: projected_network(self.module, projection, self.spec.engine),
            dataclasses.replace(
                self.spec, projection=projection.num_directions, base=self.fingerprint
            ),
            projection.affine,
            projected_fingerprint(self.fingerprint, projection),
            projection,
            self,
        )

    @property
    def module(self) -> torch.jit.ScriptModule:
        """The network.

        Raises:
            BackboneError: it is loaded only now and cannot be, as ``from_bytes`` says.
        """
        with self._lock:  # several threads may compute features
            if not isinstance(self._module, torch.jit.ScriptModule):
                self._module = self._module()
            return self._module

    def features(self, images: torch.Tensor | UInt8Array) -> UInt8Array:
        """Pooled features of a batch. They do not depend on the division into batches.

        Args:
            images: uint8 (n, 3, H, W), n >= 1, H = W = ``spec.input_size``, RGB.

        Returns:
            uint8 (n, d).

        Raises:
            BackboneError: a wrong dtype or shape, or an empty batch.
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
        buffer, base = io.BytesIO(), self.base
        with quantized_engine(self.spec.engine), accepted_deprecations():
            torch.jit.save(base.module, buffer)
        tensors: Arrays = {
            "module": np.frombuffer(buffer.getvalue(), np.uint8),
            "gain": base.affine.gain,
            "center": base.affine.center,
            **(self.projection.arrays() if self.projection else {}),
        }
        return pack(tensors, self.spec, self.fingerprint)

    @classmethod
    def from_bytes(
        cls, data: bytes, expected_fingerprint: str | None = None, *, opened: bool = True
    ) -> FrozenBackbone:
        """Read ``to_bytes``' payload. Nothing in it is unpickled.

        Args:
            data: the payload.
            expected_fingerprint: the fingerprint that it must have; None: any.
            opened: whether to load the network and compare its content with the fingerprint now.
                Otherwise this is done when features are first computed. It is most of the work,
                and cached features do not need it. Use False only for payloads that this machine
                has checked before.

        Raises:
            BackboneError: it is damaged, has another fingerprint, or needs an engine that this
                torch lacks.
        """
        tensors, spec, stated = unpack(data)
        if expected_fingerprint is not None and stated != expected_fingerprint:
            raise BackboneError(
                f"backbone has fingerprint {stated[:12]}, expected {expected_fingerprint[:12]}"
            )
        affine, plain = Affine(tensors["gain"], tensors["center"]), spec.unprojected()
        of_base = spec.base if spec.projection else stated
        open_module = partial(_open, tensors["module"], plain, affine, of_base)
        backbone = cls(open_module, plain, affine, of_base)
        if spec.projection:
            backbone = backbone.projected(Projection.of(tensors))
        if (backbone.spec, backbone.fingerprint) != (spec, stated):
            raise BackboneError(
                f"backbone states fingerprint {stated[:12]} and {spec.projection} directions, but "
                f"its content has {backbone.fingerprint[:12]} and {backbone.spec.projection}"
            )
        if opened:
            _ = backbone.module  # loads it, which checks it
        return backbone

    def save(self, folder: Path) -> None:
        """Write ``to_bytes`` into the folder, completely or not at all."""
        write_atomic(Path(folder) / _FILE, self.to_bytes())

    @classmethod
    def load(
        cls, folder: Path, expected_fingerprint: str | None = None, *, opened: bool = True
    ) -> FrozenBackbone:
        """Read what ``save`` wrote; ``opened`` as in ``from_bytes``.

        Raises:
            BackboneError: it is missing or unreadable, or as in ``from_bytes``.
        """
        try:
            data = (Path(folder) / _FILE).read_bytes()
        except OSError as exc:
            raise BackboneError(f"no backbone in {folder}: {exc.strerror or exc}") from exc
        return cls.from_bytes(data, expected_fingerprint, opened=opened)


def _open(
    archive: npt.NDArray[np.uint8], spec: BackboneSpec, affine: Affine, stated: str
) -> torch.jit.ScriptModule:
    """The network in an archive, if its content has the stated fingerprint."""
    # The caller may be in inference mode, and tensors made in that mode cannot be exported.
    with torch.inference_mode(False), quantized_engine(spec.engine), accepted_deprecations():
        try:
            module = torch.jit.load(io.BytesIO(archive.tobytes()))  # type: ignore[no-untyped-call]
            computed = content_fingerprint(module, spec, affine)
        except (RuntimeError, AttributeError) as exc:
            reason = str(exc).strip().splitlines()[0]
            raise BackboneError(f"backbone cannot be loaded: {reason}") from exc
    if computed != stated:
        raise BackboneError(
            f"backbone states fingerprint {stated[:12]}, but its content has {computed[:12]}"
        )
    _check_probe(FrozenBackbone(module, spec, affine, stated))
    return cast("torch.jit.ScriptModule", module)


def _check_probe(backbone: FrozenBackbone) -> None:
    """Compute the features of two fixed images and compare them with the maker's.

    Raises:
        BackboneError: the features differ on qnnpack, which gives the same bits on every machine.
            Other engines choose their arithmetic by processor, so there it is only a warning.
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
    # torch warns about read-only arrays, such as mapped files, so these are copied.
    return torch.from_numpy(np.require(images, requirements=["C", "W"]))


def store(backbone: FrozenBackbone, cache: Path) -> Path:
    """Store a backbone under its fingerprint and return its folder."""
    folder = backbone_file(cache, backbone.fingerprint).parent
    backbone.save(folder)
    return folder


@own_check("backbone in the cache")
def load_by_fingerprint(fingerprint: str, cache: Path) -> FrozenBackbone | None:
    """The backbone of this fingerprint, not opened; None if it is missing or damaged."""
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
    """The file in which a cache keeps the payload of a fingerprint.

    Raises:
        BackboneError: this is not a fingerprint.
    """
    if len(fingerprint) != 64 or not set(fingerprint) <= set("0123456789abcdef"):
        raise BackboneError(f"{fingerprint!r} is not a fingerprint (64 hex digits)")
    return Path(cache) / "backbones" / fingerprint / _FILE
