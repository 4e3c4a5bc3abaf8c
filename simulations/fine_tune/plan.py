"""How a backbone is fine-tuned, and the command that does it. Imports no torch."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from common.config import BackboneConfig

__all__ = ["DEFAULT", "Plan", "command_for"]

_FILE = "tuned.safetensors"
_READ = ("data.", "seed", "backbone.features", "backbone.mean", "backbone.std")


@dataclass(frozen=True)
class Plan:
    """How a network is trained.

    Attributes:
        epochs: passes over the images, at least 1.
        lr: largest learning rate.
        seed: seed of the images' order.
    """

    epochs: int
    lr: float
    seed: int


DEFAULT = Plan(epochs=5, lr=1e-4, seed=0)


def command_for(source: str, settings: BackboneConfig, items: Sequence[str] = ()) -> str:
    """The command that fine-tunes a backbone, with the options that are not the default.

    Args:
        source: a value of data.source.
        settings: [backbone].
        items: overrides as ``--set`` takes them; those that the command ignores are left out.
    """
    options = {"arch": "--arch", "weights": "--weights", "input_size": "--size"}
    words = ["fedhead", "fine-tune", source]
    for name, option in options.items():
        value = getattr(settings, name)
        if value != type(settings).model_fields[name].default:
            words += [option, str(value)]
    for item in items:
        if item.strip().startswith(_READ):
            words += ["--set", item.strip()]
    return shlex.join([*words, "--out", _FILE])
