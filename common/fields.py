"""All arrays that a client may send: what they are, how they are computed and checked.

To add one, add a row to FIELDS and write its function here; a plan then asks for it by name. The
other table, common.corrections, holds what a client remembers and adds to its gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from common.errors import ProtocolError
from common.plausible import (
    Limits,
    check_gram,
    check_moments,
    check_positive,
    check_steps,
    check_update,
    check_within,
)
from common.privacy.integers import clipped, is_within, with_offset
from common.statistics import Statistics, triangle_size
from common.types import ClientPlan, FloatArray, Layout, LocalTraining
from common.words import unknown

__all__ = [
    "FIELDS",
    "Field",
    "Memory",
    "Trained",
    "check_plausible",
    "control_delta",
    "effective_steps",
    "field_layouts",
    "fields_of_statistics",
    "fields_of_training",
    "head_shape",
]

Fields = Mapping[str, npt.NDArray[np.generic]]
Memory = Mapping[str, FloatArray]
Integers = npt.NDArray[np.unsignedinteger]


@dataclass(frozen=True, eq=False)
class Trained:
    """The result of one client's SGD, and its inputs.

    Attributes:
        delta: float32 (K, d + 1), local minus global head.
        steps: SGD steps taken.
        loss: mean cross-entropy of the global head on the client's examples.
        training: hyperparameters.
        plan: the round's plan, with its arrays.
        memory: what the client remembered before the round, see common.corrections.
    """

    delta: FloatArray
    steps: int
    loss: float
    training: LocalTraining
    plan: ClientPlan
    memory: Memory


@dataclass(frozen=True)
class Field:
    """One array that a client may send. Exactly one of ``of_training``, ``of_statistics`` is set.

    Attributes:
        shape: function from (K, d) to its shape.
        of_training: computes it after SGD, float32 or, where ``is_integer``, unsigned integers.
        of_statistics: computes it, unsigned integers, from the sums over a client's examples.
        check: called with its name, a row's fields and their limits; refuses numbers that no
            honest client sends. It runs on the server, in the order of the table, after the checks
            of shapes and dtypes.
        is_integer: whether it is made of unsigned integers, whose sums are exact.
        needs_each: whether it needs each client's own delta. A cohort can sum deltas without
            making them.
        is_bounded: whether a norm far above the round's other norms is refused.
        is_squared: whether it grows with the square of the delta's norm.
        exact: whether it is sent unencoded, whatever the plan's codec.
        of_sgd: whether it is only right for SGD, because it takes the delta for a sum of gradients
            times the learning rate.
        of_loss: whether it needs ``Trained.loss`` to be what the client minimises, as a loss of the
            user's own is not.
        private: whether a plan with a clip may ask for it, and no other plan: nothing else may
            leave a client whose update gets noise.
    """

    shape: Callable[[int, int], tuple[int, ...]]
    of_training: Callable[[Trained], FloatArray | Integers] | None = None
    of_statistics: Callable[[Statistics], Integers] | None = None
    check: Callable[[str, Fields, Limits], None] | None = None
    is_integer: bool = False
    needs_each: bool = True
    is_bounded: bool = True
    is_squared: bool = False
    exact: bool = False
    of_sgd: bool = False
    of_loss: bool = False
    private: bool = False

    @property
    def kind(self) -> Literal["f", "u"]:
        """The kind of its numbers, see Layout."""
        return "u" if self.of_statistics or self.is_integer else "f"

    def layout(self, num_classes: int, num_features: int) -> Layout:
        """Layout of one client's array."""
        return Layout(self.shape(num_classes, num_features), self.kind)


def head_shape(num_classes: int, num_features: int) -> tuple[int, ...]:
    """Weight and, as the last column, bias."""
    return (num_classes, num_features + 1)


def _number(_num_classes: int, _num_features: int) -> tuple[int, ...]:
    return (1,)


def _triangle(_num_classes: int, num_features: int) -> tuple[int, ...]:
    return (triangle_size(num_features + 1),)


def control_delta(trained: Trained) -> FloatArray:
    """SCAFFOLD's c_i+ - c_i = -c + (w - y) / (T lr), option II of arXiv 1910.06378."""
    rate = np.float32(trained.steps * trained.training.lr)
    change: FloatArray = -trained.plan.arrays["control"] - trained.delta / rate
    return change


def _steps(trained: Trained) -> float:
    return effective_steps(trained.training, trained.plan.mu, trained.steps)


def effective_steps(training: LocalTraining, mu: float, steps: int) -> float:
    """FedNova's a_i: how far the head would move under equal gradients, in learning rates.

    >>> effective_steps(LocalTraining(0.1), 0.0, 5)
    5.0
    >>> round(effective_steps(LocalTraining(0.1, momentum=0.5), 0.0, 3), 3)  # 1 + 1.5 + 1.75
    4.25
    """
    velocity = total = 0.0
    for _ in range(steps):
        velocity = training.momentum * velocity + 1 - training.lr * mu * total
        total += velocity
    return total


def _some_loss(trained: Trained) -> float:
    return max(trained.loss, 1e-10)  # no division by zero for a client without loss


def _fair_delta(trained: Trained) -> FloatArray:
    """q-FedAvg's F^q delta, arXiv 1905.10497."""
    weighted: FloatArray = np.float32(_some_loss(trained) ** trained.plan.q) * trained.delta
    return weighted


def _fair_scale(trained: Trained) -> FloatArray:
    """q-FedAvg's q F^(q - 1) ||g||^2 + F^q / lr, with g = -delta / lr."""
    loss, q, lr = _some_loss(trained), trained.plan.q, trained.training.lr
    squared = float(np.square(trained.delta.astype(np.float64)).sum()) / lr**2
    return np.array([q * loss ** (q - 1) * squared + loss**q / lr], np.float32)


def _clipped_delta(trained: Trained) -> Integers:
    return with_offset(clipped(trained.delta, trained.plan.clip))


def _within_clip(trained: Trained) -> Integers:
    return np.array([is_within(trained.delta, trained.plan.clip)], np.uint32)


FIELDS: Mapping[str, Field] = {
    "delta": Field(head_shape, lambda t: t.delta, needs_each=False),
    "control_delta": Field(head_shape, control_delta, of_sgd=True),
    "normalized_delta": Field(
        head_shape, lambda t: t.delta / np.float32(_steps(t)), of_sgd=True
    ),
    "effective_steps": Field(
        _number, lambda t: np.array([_steps(t)], np.float32), check=check_steps, is_bounded=False,
        exact=True, of_sgd=True,
    ),
    "fair_delta": Field(head_shape, _fair_delta, of_loss=True),
    "fair_scale": Field(
        _number, _fair_scale, check=check_positive, is_squared=True, exact=True, of_sgd=True,
        of_loss=True,
    ),
    "clipped_delta": Field(
        head_shape, _clipped_delta, check=check_update, is_integer=True, is_bounded=False,
        exact=True, private=True,
    ),
    "within_clip": Field(
        _number, _within_clip, check=check_within, is_integer=True, is_bounded=False, exact=True,
        private=True,
    ),
    "moments": Field(head_shape, of_statistics=lambda s: s.moments, check=check_moments),
    "gram": Field(_triangle, of_statistics=lambda s: s.gram, check=check_gram),
}  # fmt: skip


def _row(name: str) -> Field:
    if name not in FIELDS:
        raise ProtocolError(unknown("field", name, FIELDS))
    return FIELDS[name]


def field_layouts(names: Sequence[str], num_classes: int, num_features: int) -> dict[str, Layout]:
    """Layout of one client's array for each named field.

    Raises:
        ProtocolError: there is no such field; the error names the nearest.
    """
    return {name: _row(name).layout(num_classes, num_features) for name in names}


def fields_of_training(names: Sequence[str], trained: Trained) -> dict[str, FloatArray | Integers]:
    """What one client sends after SGD.

    Raises:
        ProtocolError: a field belongs to statistics, or there is none of this name.
    """
    fields: dict[str, FloatArray | Integers] = {}
    for name in names:
        if (compute := _row(name).of_training) is None:
            raise ProtocolError(f"the field {name!r} is for statistics, but the plan trains")
        fields[name] = compute(trained)
    return fields


def fields_of_statistics(names: Sequence[str], statistics: Statistics) -> dict[str, Integers]:
    """What one client sends of its statistics, or several clients of their sum.

    Raises:
        ProtocolError: a field belongs to training, or there is none of this name.
    """
    fields = {}
    for name in names:
        if (compute := _row(name).of_statistics) is None:
            raise ProtocolError(f"the field {name!r} is for training, but the plan does not train")
        fields[name] = compute(statistics)
    return fields


def check_plausible(fields: Fields, limits: Limits) -> None:
    """Refuse numbers that no honest client sends, after ``common.validate.check_fields``.

    Args:
        fields: one client's arrays, or the sum of several clients' arrays.
        limits: the bounds that follow from what the row claims.

    Raises:
        ReplyError: names the field, what was found and what is possible.
    """
    for name, field in FIELDS.items():
        if name in fields and field.check is not None:
            field.check(name, fields, limits)
