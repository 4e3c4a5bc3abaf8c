"""Weights that torchvision knows by name and downloads."""

from __future__ import annotations

import hashlib
from urllib.error import URLError

import torchvision
from torchvision.models import WeightsEnum

from common.backbone.architectures import architecture
from common.backbone.networks import State
from common.errors import BackboneError
from common.progress import stage

__all__ = ["LICENCE", "fetched", "identity", "member"]

LICENCE = "BSD-3-Clause (torchvision); trained on ImageNet, whose terms allow research use only"


def member(arch: str, name: str) -> WeightsEnum:
    """A member of torchvision's enum for this network.

    Args:
        arch: a key of ``ARCHITECTURES``.
        name: "imagenet" for the default, or the enum's name, a dot and the member's name.

    Raises:
        BackboneError: there is none of this name.
    """
    row = architecture(arch)
    members = getattr(torchvision.models, row.enum).__members__ if row.enum else {}
    enum_name, _, member_name = name.partition(".")
    if name == "imagenet" and "DEFAULT" in members:
        enum_name, member_name = row.enum, "DEFAULT"
    if enum_name != row.enum or member_name not in members:
        own = ["imagenet"] if row.enum or row.embedded else []
        choices = [*own, "random", "file:PATH", *(f"{row.enum}.{known}" for known in members)]
        raise BackboneError(
            f"unknown weights {name!r} for {arch}, expected one of {', '.join(choices)}"
        )
    return members[member_name]


def identity(found: WeightsEnum) -> str:
    """A text that changes when the weights change; the weights are not downloaded."""
    return hashlib.sha256(found.url.encode()).hexdigest()  # the URL ends with the file's hash


def fetched(found: WeightsEnum) -> State:
    """The weights themselves, downloaded if torch does not have them yet.

    Raises:
        BackboneError: there is no network.
    """
    try:
        with stage(f"downloading {found}"):
            state: State = found.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as exc:
        raise BackboneError(
            f"cannot download {found}: {exc}; download {found.url} on a machine with a network "
            "and name it as file:PATH"
        ) from exc
    return state
