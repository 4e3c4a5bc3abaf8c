"""What a phone accepts from a gateway, which may be hostile: nothing is allocated or used before.

Bounds are far above every honest run; they keep a phone from working or storing without end.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import cast

import numpy as np

from client.phone.blobs import check_blob
from client.phone.trainer import Order
from common.errors import ProtocolError
from common.phones.phones_pb2 import (
    EVALUATE,
    SGD,
    STATISTICS,
    Blob,
    Description,
    Kind,
    Task,
    Training,
)
from common.types import FloatArray, Head, LocalTraining, Optimizer
from common.validate import LARGEST
from common.words import unknown

__all__ = ["check_able", "check_description", "check_task", "needs", "order_of"]

_MOST_BACKBONE_BYTES = 128 << 20
_MOST_NUMBERS = 1 << 24  # of one array
_MOST_STEPS = 1 << 20  # of one task
_MOST_EXAMPLES = 1 << 24
_MOST_CLASSES, _LONGEST_NAME = 1 << 14, 255
_HASH, _TASK = re.compile("[0-9a-f]{64}"), re.compile("[0-9a-f]{32}")
_RUN = re.compile("[A-Za-z0-9-]{1,64}")
_OPTIMIZERS = ("sgd", "adam", "adamw")
_CODECS = ("none", "int8", "drive")
_FIELDS: dict[tuple[int, bool], tuple[set[str], ...]] = {
    (SGD, False): ({"delta"},),
    (SGD, True): ({"clipped_delta"}, {"clipped_delta", "within_clip"}),
    (STATISTICS, False): ({"moments"}, {"moments", "gram"}),
}


def check_description(description: Description) -> None:
    """Refuse a description that no run has.

    Raises:
        ProtocolError: names what is wrong.
    """
    classes = description.classes
    rules = {
        "id": bool(_HASH.fullmatch(description.id)),
        "run": bool(_RUN.fullmatch(description.run)),
        "fingerprint": bool(_HASH.fullmatch(description.fingerprint)),
        "classes": 2 <= len(classes) <= _MOST_CLASSES and len({*classes}) == len(classes),
        "name of a class": all(0 < len(name) <= _LONGEST_NAME for name in classes),
        "test_fraction": 0 <= description.test_fraction < 1,
        "client": description.client < 1 << 63,
    }
    _check(rules, "description")
    for backbone in description.backbones:
        what = f"the backbone in format {backbone.format[:20]!r}"
        check_blob(backbone.file, what, _MOST_BACKBONE_BYTES)


def check_task(task: Task, description: Description) -> None:
    """Refuse a task before any of its blobs is fetched.

    Args:
        task: from the gateway.
        description: of the task's run, checked before.

    Raises:
        ProtocolError: names what is wrong.
    """
    rows, columns = task.num_classes, task.num_features + 1
    private = description.private
    rules = {
        "id": bool(_TASK.fullmatch(task.id)),
        "run": task.run == description.run,
        "fingerprint": task.fingerprint == description.fingerprint,
        # A head may be evaluated before the first round.
        "round": task.round >= 1 or task.kind == EVALUATE,
        "kind": task.kind in Kind.values() and task.kind != 0,
        "seconds_left": math.isfinite(task.seconds_left),
        "num_classes": rows == len(description.classes),
        "num_features": 1 <= task.num_features < _MOST_NUMBERS,
        "number of head's numbers": rows * columns <= _MOST_NUMBERS,
        "num_examples": task.num_examples <= _MOST_EXAMPLES
        and (task.num_examples > 0 or task.kind not in (SGD, STATISTICS)),
        "clip": 0 <= task.clip < math.inf and (task.clip > 0) == private,
        "kind in a private run": not private or task.kind == SGD,
        "correction in a private run": not private or not task.correction.sha256,
        "unit_norm": 0 <= task.unit_norm < math.inf and (private or not task.unit_norm),
        "max_norm": 0 <= task.max_norm < math.inf,
        "codec": task.codec in ("", *_CODECS) and (not private or task.codec in ("", "none")),
    }
    if task.kind in (SGD, STATISTICS):
        rules["fields"] = _are_fields(task, private)
    _check(rules, "task")
    if task.kind == SGD:
        _check(_training_rules(task.training, task.num_examples), "task's training")
    _check_shape(task.head, "the head", rows, columns)
    if task.correction.sha256:
        _check_shape(task.correction, "the correction", rows, columns)
    if task.preconditioner.sha256:
        _check_shape(task.preconditioner, "the preconditioner", columns, columns)


def _are_fields(task: Task, private: bool) -> bool:
    named = {*task.fields}
    return len(named) == len(task.fields) and named in _FIELDS.get((task.kind, private), ())


def _training_rules(training: Training, num_examples: int) -> dict[str, bool]:
    most = training.epochs * -(-num_examples // max(training.batch_size, 1))
    return {
        "optimizer": training.optimizer in _OPTIMIZERS,
        "lr": 0 < training.lr < math.inf,
        "epochs": training.epochs >= 1,
        "batch_size": training.batch_size >= 1,
        "number of steps": most <= _MOST_STEPS,
        "momentum": 0 <= training.momentum < 1,
        "weight_decay": 0 <= training.weight_decay < math.inf,
        "mu": 0 <= training.mu < math.inf,
    }


def _check(rules: dict[str, bool], what: str) -> None:
    wrong = [name for name, holds in rules.items() if not holds]
    if wrong:
        raise ProtocolError(f"the {what} has an impossible {', '.join(wrong)}")


def _check_shape(blob: Blob, what: str, rows: int, columns: int) -> None:
    """Refuse a blob that is not exactly one float32 array of this shape."""
    if rows * columns > _MOST_NUMBERS:
        raise ProtocolError(f"{what} would be ({rows}, {columns}), expected fewer numbers")
    check_blob(blob, what, 4 * _MOST_NUMBERS)
    if blob.size != 4 * rows * columns:
        raise ProtocolError(
            f"{what} has {blob.size} bytes, expected {4 * rows * columns} for ({rows}, {columns})"
        )


def needs(task: Task) -> list[str]:
    """The abilities that a checked task asks for, see docs/phones.md."""
    if task.kind != SGD:
        return ["statistics" if task.kind == STATISTICS else "evaluate"]
    training = task.training
    asked = {
        "sgd": True,
        "momentum": training.momentum > 0 and training.optimizer == "sgd",
        "weight-decay": training.weight_decay > 0,
        "mu": training.mu > 0,
        "correction": bool(task.correction.sha256),
        "preconditioner": bool(task.preconditioner.sha256),
        training.optimizer: True,
        "clip": task.clip > 0,
        f"codec:{task.codec}": task.codec not in ("", "none"),
    }
    return [name for name, is_asked in asked.items() if is_asked]


def check_able(task: Task, abilities: Sequence[str]) -> None:
    """Refuse a task that asks for more than the phone has said it can do.

    Raises:
        ProtocolError: names the ability.
    """
    for name in needs(task):
        if name not in abilities:
            raise ProtocolError(unknown("ability", name, abilities))


def order_of(
    task: Task, description: Description, head: bytes, correction: bytes, preconditioner: bytes
) -> Order:
    """A checked task with the bytes of its blobs, as values.

    Raises:
        ProtocolError: a number is not finite or far too large.
    """
    shape = task.num_classes, task.num_features + 1
    square = shape[1], shape[1]
    training = task.training
    return Order(
        description=description,
        round_number=task.round,
        num_examples=task.num_examples,
        fields=tuple(task.fields),
        head=Head.from_matrix(_floats(head, shape, "the head")),
        training=LocalTraining(
            lr=training.lr,
            local_epochs=training.epochs,
            batch_size=training.batch_size,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
            optimizer=cast("Optimizer", training.optimizer or "sgd"),
        ),
        batch_seed=training.batch_seed,
        mu=training.mu,
        correction=_floats(correction, shape, "the correction") if correction else None,
        preconditioner=(
            _floats(preconditioner, square, "the preconditioner") if preconditioner else None
        ),
        codec=task.codec or "none",
        codec_seed=task.codec_seed,
        clip=task.clip,
        unit_norm=task.unit_norm,
        max_norm=task.max_norm,
    )


def _floats(data: bytes, shape: tuple[int, int], what: str) -> FloatArray:
    array = np.frombuffer(data, "<f4").reshape(shape).astype(np.float32)
    if not (np.abs(array) <= LARGEST).all():  # false of NaN, too
        raise ProtocolError(f"{what} holds a number that is not finite or above {LARGEST:g}")
    return array
