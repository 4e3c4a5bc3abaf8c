"""What a phone computes: the protocol's client asks an object of this type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from common.phones.phones_pb2 import Backbone, Description
from common.types import FloatArray, Head, LocalTraining

__all__ = ["Computed", "Order", "Trainer"]


@dataclass(frozen=True, eq=False)
class Order:
    """A task whose numbers are checked.

    Attributes:
        description: of the run.
        round_number: from 1.
        num_examples: that the phone has told.
        fields: names of the arrays to send.
        head: to start from, or to evaluate.
        training: hyperparameters.
        batch_seed: see ``common.seeding.seeded_order``.
        mu: proximal coefficient.
        correction: (K, d + 1), added to each gradient.
        preconditioner: (d + 1, d + 1), multiplies each gradient.
        codec: of "delta".
        codec_seed: its seed.
        clip: bound on a private update's norm; 0: the run is not private.
        unit_norm: norm that each example's features are given; 0: as they are.
        max_norm: bound on the norm of "delta"; 0: none.
    """

    description: Description
    round_number: int
    num_examples: int
    fields: tuple[str, ...]
    head: Head
    training: LocalTraining = field(default_factory=lambda: LocalTraining(0.1))
    batch_seed: int = 0
    mu: float = 0.0
    correction: FloatArray | None = None
    preconditioner: FloatArray | None = None
    codec: str = "none"
    codec_seed: int = 0
    clip: float = 0.0
    unit_norm: float = 0.0
    max_norm: float = 0.0


@dataclass(frozen=True)
class Computed:
    """What a task gave.

    Attributes:
        num_examples: used; 1 in a private run.
        loss_before: mean cross-entropy of the given head; 0 in a private run.
        loss_after: the same of the trained head.
        correct: number of right predictions, of EVALUATE.
        losses: float64 (49,), little-endian, of EVALUATE.
        arrays: the bytes of each array, by field.
    """

    num_examples: int
    loss_before: float
    loss_after: float = 0.0
    correct: int = 0
    losses: bytes = b""
    arrays: Mapping[str, bytes] = field(default_factory=dict)


class Trainer(Protocol):
    """Computes on a phone's own examples. It is called in other threads, one call at a time.

    Each method may raise any FedheadError; the gateway is told its kind alone.
    """

    @property
    def formats(self) -> Sequence[str]:
        """Formats of backbones that it runs, the preferred one first."""
        ...

    @property
    def abilities(self) -> Sequence[str]:
        """What it can do, see docs/phones.md."""
        ...

    def prepare(self, description: Description, backbone: Backbone, data: bytes | None) -> bool:
        """Get ready for a run, up to the features of all examples.

        Args:
            description: the run.
            backbone: its backbone in one of the formats.
            data: the backbone's bytes; None: use those that are here.

        Returns:
            False if there are none here.
        """
        ...

    def holding(self, description: Description) -> tuple[int, int]:
        """Examples of the train and of the test part, now."""
        ...

    def sgd(self, order: Order) -> Computed:
        """Train the head."""
        ...

    def statistics(self, order: Order) -> Computed:
        """Sum up the examples."""
        ...

    def evaluate(self, order: Order) -> Computed:
        """Test the head on the test part."""
        ...
