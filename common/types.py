"""The values that rooms hand to each other. Plain frozen data, no framework objects."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from common.errors import BackboneError

__all__ = [
    "WHOLE",
    "Affine",
    "ClientPlan",
    "FeatureSet",
    "FloatArray",
    "Head",
    "IntArray",
    "Layout",
    "LocalTraining",
    "Optimizer",
    "UpdateBatch",
]

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
Optimizer = Literal["sgd", "adam", "adamw"]

WHOLE = 2**31 - 1
"""A batch size above every number of examples."""


@dataclass(frozen=True, eq=False)
class Head:
    """A linear softmax classifier, the only thing that crosses the wire in training.

    Attributes:
        weight: float32 (K, d).
        bias: float32 (K,).
    """

    weight: FloatArray
    bias: FloatArray

    @classmethod
    def zeros(cls, num_classes: int, num_features: int) -> Head:
        """The head that gives every class the same probability."""
        return cls(
            np.zeros((num_classes, num_features), np.float32), np.zeros(num_classes, np.float32)
        )

    @classmethod
    def from_matrix(cls, matrix: npt.NDArray[np.floating]) -> Head:
        """Split a (K, d + 1) matrix, whose last column is the bias."""
        matrix = np.asarray(matrix, np.float32)
        return cls(np.ascontiguousarray(matrix[:, :-1]), np.ascontiguousarray(matrix[:, -1]))

    @property
    def matrix(self) -> FloatArray:
        """float32 (K, d + 1): weight and, as the last column, bias. A copy."""
        return np.concatenate([self.weight, self.bias[:, None]], axis=1)

    @property
    def num_classes(self) -> int:
        return int(self.weight.shape[0])

    @property
    def num_features(self) -> int:
        return int(self.weight.shape[1])

    @property
    def sha256(self) -> str:
        """Hash of the exact bytes; two runs that agree here agree in every bit."""
        digest = hashlib.sha256()
        for array in (self.weight, self.bias):
            digest.update(np.ascontiguousarray(array, "<f4").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Affine:
    """How uint8 features become the x that trainers see: ``x = gain * (q - center)``.

    The plain map of a quantized tensor is ``gain = scale`` and ``center = zero_point``; a
    backbone may scale each feature further. Part of the backbone's fingerprint, and folded
    into the head at export, so that a phone never computes it.

    Attributes:
        gain: float32 (d,).
        center: float32 (d,).
    """

    gain: FloatArray
    center: FloatArray

    def __call__(self, q: npt.NDArray[np.uint8]) -> FloatArray:
        """uint8 (n, d) to float32 (n, d)."""
        return (q.astype(np.float32) - self.center) * self.gain


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Quantized features with their labels.

    Attributes:
        q: uint8 (n, d), possibly memory-mapped.
        labels: int64 (n,).
        affine: maps q to x.
        fingerprint: of the backbone that computed q.
    """

    q: npt.NDArray[np.uint8]
    labels: IntArray
    affine: Affine
    fingerprint: str

    def __post_init__(self) -> None:
        if self.q.dtype != np.uint8 or self.q.ndim != 2:
            raise BackboneError(
                f"features are {self.q.dtype} {self.q.shape}, expected uint8 (n, d)"
            )
        if len(self.q) != len(self.labels):
            raise BackboneError(
                f"features have {len(self.q)} rows, but labels have {len(self.labels)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_features(self) -> int:
        return int(self.q.shape[1])

    def select(self, index: IntArray) -> FeatureSet:
        """The examples at these positions, in this order."""
        return FeatureSet(self.q[index], self.labels[index], self.affine, self.fingerprint)

    @cached_property
    def x(self) -> FloatArray:
        """float32 (n, d + 1): features as trainers see them, and a constant 1 for the bias.

        Four times the size of q, and kept: select a part of large data first.
        """
        out = np.ones((len(self), self.num_features + 1), np.float32)
        out[:, :-1] = self.affine(self.q)
        return out


@dataclass(frozen=True)
class LocalTraining:
    """Hyperparameters of a client's local training.

    Attributes:
        lr: learning rate of the round, > 0.
        local_epochs: passes over the client's examples, >= 1.
        batch_size: examples a step; the last batch of an epoch may be smaller.
        momentum: SGD's heavy-ball momentum in [0, 1).
        weight_decay: L2 penalty added to the gradient; of AdamW, taken off the weights directly.
        optimizer: what takes the steps, see client.sgd.
    """

    lr: float
    local_epochs: int = 1
    batch_size: int = 10
    momentum: float = 0.0
    weight_decay: float = 0.0
    optimizer: Optimizer = "sgd"

    def most_steps(self, num_examples: int) -> float:
        """What FedNova's effective steps are at most.

        >>> LocalTraining(0.1, local_epochs=2, momentum=0.5).most_steps(25)
        12.0
        """
        steps = self.local_epochs * math.ceil(num_examples / self.batch_size)
        return steps / (1 - self.momentum)


@dataclass(frozen=True)
class Layout:
    """What an array is, before there is one.

    Attributes:
        shape: of it.
        kind: "f" for float32; "u" for unsigned integers, uint32 where they fit and else uint64.
    """

    shape: tuple[int, ...]
    kind: Literal["f", "u"] = "f"


@dataclass(frozen=True, eq=False)
class ClientPlan:
    """What the clients of one round do, as decided by the strategy.

    Attributes:
        kind: "sgd" trains the head; "statistics" sends sufficient statistics once.
        fields: names of the arrays each client sends, see common.fields.
        weighting: weight of a client in the sums: its examples, or 1.
        mu: proximal coefficient, adds mu/2 * ||w - w_global||^2 to the loss.
        correction: what each client adds to its gradients and remembers, see common.corrections.
        q: q-FedAvg's fairness.
        uplink: codec of what clients send, see common.codecs.
        downlink: codec of the head that they are sent.
        clip: bound on the norm of a client's update, which it then sends as integers and without
            any figure of its own, see common.privacy; 0: no privacy.
        unit_norm: norm that each example's features are given, without a bias; 0: as they are.
        exclude: clients that this round must not ask again; stays on the server.
        everyone: asks all other clients, however few a round usually asks, and for their sum;
            stays on the server.
        arrays: what the strategy sends along: "control" (K, d + 1) is SCAFFOLD's c.
        constant: the same, but equal in all rounds, so that a client keeps it and needs it once:
            "preconditioner" (d + 1, d + 1) multiplies each gradient from the right.
    """

    kind: Literal["sgd", "statistics"] = "sgd"
    fields: tuple[str, ...] = ("delta",)
    weighting: Literal["examples", "uniform"] = "examples"
    mu: float = 0.0
    correction: str = "none"
    q: float = 0.0
    uplink: str = "none"
    downlink: str = "none"
    clip: float = 0.0
    unit_norm: float = 0.0
    exclude: tuple[int, ...] = ()
    everyone: bool = False
    arrays: Mapping[str, FloatArray] = field(default_factory=dict)
    constant: Mapping[str, FloatArray] = field(default_factory=dict)

    @property
    def private(self) -> bool:
        """Whether nothing of a client may leave without noise."""
        return self.clip > 0


@dataclass(frozen=True, eq=False)
class UpdateBatch:
    """What the server aggregates.

    With ``reduce == "individual"`` each row is one client; with ``"sum"`` each row is the
    weighted sum over one node's clients, ``weights`` holds the summed weights and
    ``client_ids`` names who is in it.

    Attributes:
        client_ids: for each row, the clients it stands for.
        num_examples: int64 (m,), examples behind each row.
        weights: float64 (m,), summed weights behind each row.
        fields: arrays of shape (m, ...); "delta" is (m, K, d + 1), local minus global.
    """

    client_ids: tuple[tuple[int, ...], ...]
    num_examples: IntArray
    weights: npt.NDArray[np.float64]
    fields: Mapping[str, npt.NDArray[np.generic]]

    @property
    def num_clients(self) -> int:
        return sum(len(ids) for ids in self.client_ids)
