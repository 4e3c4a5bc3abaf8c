"""How a backbone is fine-tuned, and the command that does it. Imports no torch."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from common.config import BackboneConfig

__all__ = ["DEFAULT", "Plan", "command_for"]

_OPTIONS = {"arch": "--arch", "weights": "--weights", "input_size": "--size"}


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


DEFAULT = Plan(epochs=5, lr=1e-3, seed=0)


def command_for(source: str, settings: BackboneConfig, items: Sequence[str] = ()) -> str:
    """The command that fine-tunes a backbone, with the options that are not the default.

    Args:
        source: a value of data.source, or a path.
        settings: [backbone].
        items: overrides as ``--set`` takes them; those of [data] and the seed are taken over.
    """
    words = ["fedhead", "fine-tune", source]
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if value == field.default:
            continue
        if name in _OPTIONS:
            words += [_OPTIONS[name], str(value)]
        elif name in ("features", "mean", "std"):
            text = value if isinstance(value, str) else list(value)
            words += ["--set", f"backbone.{name}={text}"]
    for item in items:
        if item.strip().startswith(("data.", "seed")):
            words += ["--set", item.strip()]
    return shlex.join([*words, "--out", "tuned.safetensors"])
