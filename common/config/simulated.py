"""Sections on what is simulated: phones that fail or attack, and the machine beneath."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import ByteSize, Field

from common.config.numbers import Fraction, Positive
from common.toml_model import Section

__all__ = ["AttackConfig", "AvailabilityConfig", "SimulationConfig"]

_USUAL_SCALES = {"sign-flip": 5.0, "alie": 1.5, "ipm": 2.0, "gaussian": 0.1, "inflate": 10.0}


class AvailabilityConfig(Section):
    """[availability]: which simulated phones answer, and when; seconds here are simulated."""

    dropout_rate: Fraction = 0.0
    """Share of a round's clients that never answer."""
    straggler_rate: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of all clients that are slow, the same ones in every round."""
    straggler_factor: Annotated[float, Field(ge=1)] = 5.0
    """How many times as long a slow client takes."""
    example_seconds: Annotated[float, Field(gt=0)] = 0.01
    """What an ordinary client takes for one example in one epoch."""
    deadline_seconds: Annotated[float, Field(ge=0)] = 0.0
    """A round closes after this time; 0: never."""
    close_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """A round closes once this share of its clients has answered."""


class AttackConfig(Section):
    """[attack]: simulated clients that try to spoil the model."""

    kind: Literal[
        "none", "sign-flip", "alie", "ipm", "gaussian", "nan", "inflate", "label-flip"
    ] = "none"
    """What they do. They send their delta times -scale; the honest ones' mean plus scale standard
    deviations; that mean times -scale; noise of this deviation; NaN; a number of examples scale
    times as large; or they train on labels K - 1 - y."""
    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of all clients that are malicious, rounded down; the same ones in every round."""
    scale: Annotated[float, Field(ge=0)] = 0.0
    """0: the usual one, sign-flip 5, alie 1.5, ipm 2, gaussian 0.1, inflate 10."""

    @property
    def strength(self) -> float:
        """The scale that applies."""
        return self.scale or _USUAL_SCALES.get(self.kind, 0.0)

    @property
    def changes_updates(self) -> bool:
        """Whether malicious clients send something else than what they computed."""
        return self.kind not in ("none", "label-flip")

    def count(self, num_clients: int) -> int:
        """How many of so many clients are malicious."""
        return 0 if self.kind == "none" else math.floor(self.fraction * num_clients + 1e-9)

    def problem(self, num_clients: int) -> str:
        """What cannot be meant; empty if nothing."""
        if self.scale and self.kind not in _USUAL_SCALES:
            return f"attack.scale={self.scale:g} means nothing to attack.kind={self.kind!r}"
        if self.kind == "inflate" and not self.scale.is_integer():
            return f"attack.scale={self.scale:g} must be a whole number: examples are counted"
        if self.kind != "none" and not self.count(num_clients):
            return f"attack.fraction={self.fraction:g} of {num_clients} clients is nobody"
        return ""


class SimulationConfig(Section):
    """[simulation]: the engines on this machine, in-process and Flower's."""

    nodes: Positive = 1
    """Virtual nodes that host the clients; a stock Flower strategy has one for each client."""
    trainer: Literal["cohort", "reference"] = "cohort"
    """All of a node's clients at once, or one by one in plain torch: the same to rounding."""
    cohort_memory: Annotated[ByteSize, Field(ge=0)] = ByteSize(2_000_000_000)
    """What a node's Gram matrices may take between rounds, for example "4GB"."""
