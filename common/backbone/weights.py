"""Pretrained float weights: finds them by name and checks that they fit."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from common.backbone.architectures import (
    ARCHITECTURES,
    Architecture,
    Embedded,
    Timm,
    architecture,
    imported,
)
from common.backbone.names import Naming, naming
from common.backbone.networks import State, shapes, skeleton
from common.backbone.sources import embedded_file, weights_file
from common.backbone.torchvision_weights import LICENCE, fetched, identity, member
from common.backbone.weights_file import read_tensors
from common.errors import BackboneError
from common.files import sha256_file
from common.words import some

__all__ = ["Weights", "load_weights"]

# A counter of batches for moving averages, which a frozen network does not update.
_COUNTER = "num_batches_tracked"

_log = logging.getLogger("fedhead")


@dataclass(frozen=True)
class Weights:
    """Float weights of the network without its classifier.

    Attributes:
        label: where they come from, for cards and reports.
        licence: their licence, as far as the source states it.
        identity: a text that changes when the weights change; part of cache keys.
        state: see ``State``; None: random weights.
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
            "MobileNet_V2_Weights.IMAGENET1K_V2", "random", or "file:PATH". The file is a
            safetensors file, or ``torch.save`` wrote it with a state dict, alone or in a
            checkpoint. Its names are the network's or timm's, with any prefix. Classifiers are
            left out.

    Raises:
        BackboneError: unknown name, unreadable file, or weights that do not fit.
        MissingExtraError: the package that holds the embedded weights is not installed.
    """
    row = architecture(arch)
    if weights == "random":
        return Weights("random", "none: random numbers", "random", None)
    if weights.startswith("file:"):
        return _from_file(arch, weights_file(weights))
    if weights == "imagenet" and row.embedded:
        return _embedded(row, row.embedded)
    return _from_torchvision(arch, weights)


def _from_file(arch: str, path: Path) -> Weights:
    digest = sha256_file(path)
    return Weights(
        label=f"file:{path.name}@{digest[:12]}",
        licence="as the file's owner says",
        identity=digest,
        state=_fit(arch, read_tensors(path), str(path)),
    )


def _fit(arch: str, found: State, where: str) -> State:
    """The file's tensors that belong to features, under the network's names and in its order."""
    called = naming(arch, found, where)
    if called.timm and re.search(called.timm.other, where):
        raise BackboneError(
            f"weights in {where} are of a timm network whose padding differs from "
            f"{called.timm.name}'s: {arch} here would give other features"
        )
    problems = _problems(arch, found, called)
    if problems:
        fitting = [
            other
            for other in ARCHITECTURES
            if other != arch and not _problems(other, found, naming(other, found, where))
        ]
        if fitting:
            problems = [f"they are {fitting[0]}'s (backbone.arch)"]
        raise BackboneError(f"weights in {where} do not fit {arch}: {'; '.join(problems)}")
    _tell(called, where)
    state = {
        key: found[name].float() if not key.endswith(_COUNTER) else torch.tensor(0)
        for key, name in called.names.items()
    }
    return _from_timm(arch, called.timm, state) if called.timm else state


def _problems(arch: str, found: State, called: Naming) -> list[str]:
    own = shapes(arch)
    names = {key: name for key, name in called.names.items() if not key.endswith(_COUNTER)}
    there = {key: name for key, name in names.items() if name in found}
    wrong = [
        f"{name} is {tuple(found[name].shape)}, expected {tuple(own[key])}"
        for key, name in there.items()
        if found[name].shape != own[key]
    ]
    # Eight-bit floats cannot be compared directly.
    floats = {n: found[n].float() for n in there.values() if found[n].is_floating_point()}
    broken = [name for name, values in floats.items() if not bool(values.isfinite().all())]
    negative = [
        name
        for key, name in there.items()
        if key.endswith("running_var") and name in floats and bool((floats[name] < 0).any())
    ]
    counted: tuple[tuple[Sequence[str], str], ...] = (
        ([name for name in names.values() if name not in found], "keys are missing"),
        (called.unexpected, "keys are unexpected"),
        ([name for name in there.values() if name not in floats], "tensors are not floats"),
        (broken, "tensors are not finite"),
        (negative, "variances are negative"),
    )
    problems = [f"{len(these)} {what}: {some(these, 3)}" for these, what in counted if these]
    if wrong:
        problems.append(f"{len(wrong)} shapes differ: {'; '.join(wrong[:3])}")
    return problems


def _tell(called: Naming, where: str) -> None:
    """Log once what differs from a plain state dict, so that nothing is dropped silently."""
    said = []
    if called.timm:
        said.append("its names are timm's")
    if called.prefix not in ("", "features."):
        said.append(f"the features lie below {called.prefix!r}")
    foreign = [name for name in called.others if not name.startswith("classifier.")]
    if foreign:
        said.append(f"{len(foreign)} tensors are not features: {some(foreign, 3)}")
    if said:
        _log.info("weights in %s: %s", where, "; ".join(said))


def _from_timm(arch: str, timm: Timm, state: State) -> State:
    """Variances changed so that batch norms with another epsilon compute the same function."""
    changed = dict(state)
    for name, layer in skeleton(arch).named_modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.eps != timm.epsilon:
            variance = state[f"{name}.running_var"].double()
            gain = ((variance + layer.eps) / (variance + timm.epsilon)).sqrt()
            changed[f"{name}.weight"] = (state[f"{name}.weight"].double() * gain).float()
    return imported(timm.reader)(changed) if timm.reader else changed


def _embedded(row: Architecture, embedded: Embedded) -> Weights:
    file = embedded_file(embedded, row.title)
    state = imported(embedded.reader)(list(shapes(row.name)), read_tensors(file))
    return Weights(
        label=f"imagenet ({embedded.package} {embedded.version})",
        licence=embedded.licence,
        identity=embedded.sha256,
        state=_fit(row.name, state, str(file)),
    )


def _from_torchvision(arch: str, name: str) -> Weights:
    found = member(arch, name)
    label = str(found)
    return Weights(label, LICENCE, identity(found), _fit(arch, fetched(found), label))
