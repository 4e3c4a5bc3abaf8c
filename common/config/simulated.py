"""Sections on what is simulated: clients that fail or attack, and how they are run."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import ByteSize, Field

from common.config.numbers import Fraction, Positive
from common.toml_model import Section

__all__ = ["AttackConfig", "AvailabilityConfig", "SimulationConfig"]

_USUAL_SCALES = {
    "sign-flip": 5.0, "alie": 1.5, "ipm": 2.0, "gaussian": 0.1, "inflate": 10.0, "backdoor": 1.0,
}  # fmt: skip


class AvailabilityConfig(Section):
    """[availability]: which simulated clients answer, and when. Seconds here are simulated."""

    dropout_rate: Fraction = 0.0
    """Share of a round's clients that never answer."""
    straggler_rate: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of all clients that are slow, the same ones in every round."""
    straggler_factor: Annotated[float, Field(ge=1)] = 5.0
    """How many times as long as an ordinary client a slow one takes."""
    example_seconds: Annotated[float, Field(gt=0)] = 0.01
    """Seconds that an ordinary client takes for one example in one epoch."""
    deadline_seconds: Annotated[float, Field(ge=0)] = 0.0
    """Simulated seconds after which a round closes; 0: no limit."""
    close_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of a round's clients; once so many have answered, the round closes."""


class AttackConfig(Section):
    """[attack]: simulated clients that try to spoil the model."""

    kind: Literal[
        "none", "sign-flip", "alie", "ipm", "gaussian", "nan", "inflate", "label-flip", "backdoor"
    ] = "none"
    """What malicious clients do. sign-flip: send their delta times -scale; alie: the honest
    clients' mean plus scale standard deviations; ipm: that mean times -scale; gaussian: noise
    with scale as its standard deviation; nan: NaN; inflate: a number of examples scale times too
    large; label-flip: train on labels K - 1 - y; backdoor: half of their examples carry a trigger,
    a fixed pattern of features, and are labelled as the target; they send scale times their
    delta."""
    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of all clients that are malicious, rounded down; the same ones in every round."""
    scale: Annotated[float, Field(ge=0)] = 0.0
    """Strength of the attack; 0: the usual one (sign-flip 5, alie 1.5, ipm 2, gaussian 0.1,
    inflate 10, backdoor 1)."""
    target: Annotated[int, Field(ge=0)] = 0
    """The class that a backdoor's examples are labelled as, from 0."""

    @property
    def strength(self) -> float:
        """The scale that applies."""
        return self.scale or _USUAL_SCALES.get(self.kind, 0.0)

    @property
    def changes_updates(self) -> bool:
        """Whether malicious clients send something other than what they computed."""
        if self.kind == "backdoor":
            return self.strength != 1
        return self.kind not in ("none", "label-flip")

    @property
    def named(self) -> str:
        """The key that makes clients send something else, with its value, for messages."""
        if self.kind == "backdoor":
            return f"attack.scale={self.scale:g}"
        return f"attack.kind={self.kind!r}"

    def count(self, num_clients: int) -> int:
        """Number of malicious clients among ``num_clients``."""
        return 0 if self.kind == "none" else math.floor(self.fraction * num_clients + 1e-9)

    def problem(self, num_clients: int) -> str:
        """What is wrong with the settings together; empty if nothing."""
        if self.scale and self.kind not in _USUAL_SCALES:
            return f"attack.scale={self.scale:g} has no effect with attack.kind={self.kind!r}"
        if self.target and self.kind != "backdoor":
            return f"attack.target={self.target} has no effect with attack.kind={self.kind!r}"
        if self.kind == "inflate" and not self.scale.is_integer():
            return f"attack.scale={self.scale:g} must be a whole number for attack.kind='inflate'"
        if self.kind != "none" and not self.count(num_clients):
            return f"attack.fraction={self.fraction:g} of {num_clients} clients is not one client"
        return ""


class SimulationConfig(Section):
    """[simulation]: the engines on this machine, in-process and Flower's."""

    nodes: Positive = 1
    """Virtual nodes that host the clients; a Flower strategy needs one node per client."""
    trainer: Literal["cohort", "reference"] = "cohort"
    """cohort trains all of a node's clients at once, reference one by one in plain torch. Both
    give the same result up to rounding."""
    cohort_memory: Annotated[ByteSize, Field(ge=0)] = ByteSize(2_000_000_000)
    """Bytes that a node's Gram matrices may take between rounds, for example "4GB"."""
