"""What a simulated phone computes for a task, in NumPy: some hundred microseconds for an update.

The same steps as ``client.sgd`` takes, in the same order of examples, so that an update differs by
rounding only. Torch would take ten times as long to begin as such small products take.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.errors import ProtocolError
from common.phones.phones_pb2 import DONE, EVALUATE, SGD, STATISTICS, Array, Submission, Task
from common.seeding import words
from common.statistics import feature_statistics
from common.temperature import losses_by_sharpness
from common.types import FeatureSet, FloatArray, IntArray

__all__ = ["ABILITIES", "Arrays", "epoch_order", "perform"]

ABILITIES = ("sgd", "momentum", "weight-decay", "mu", "correction", "statistics", "evaluate")
"""What these phones can do."""


@dataclass(frozen=True, eq=False)
class Arrays:
    """What a task brings.

    Attributes:
        head: float32 (K, d + 1).
        correction: the same; None: there is none.
    """

    head: FloatArray
    correction: FloatArray | None = None

    @classmethod
    def read(cls, task: Task, head: bytes, correction: bytes) -> Arrays:
        """The arrays of a task's blobs."""
        shape = task.num_classes, task.num_features + 1
        first = np.frombuffer(head, "<f4").reshape(shape)
        added = np.frombuffer(correction, "<f4").reshape(shape) if correction else None
        return cls(first, added)


def epoch_order(seed: int, epoch: int, n: int) -> IntArray:
    """The order in which an epoch visits n examples, int64 (n,); see ``phones.proto``.

    Args:
        seed: the task's ``batch_seed``.
        epoch: from 0.
        n: number of examples.
    """
    state = words(np.uint64(seed) ^ np.uint64(epoch), np.zeros(1, np.uint64))
    drawn = words(state, np.arange(n, dtype=np.uint64)) >> np.uint64(1)
    return np.argsort(drawn, kind="stable")


def perform(
    task: Task, arrays: Arrays, images: FeatureSet, train: IntArray, test: IntArray
) -> Submission:
    """The result of a task.

    Args:
        task: what to do.
        arrays: what the task brings.
        images: those of all phones.
        train: positions of the phone's train part.
        test: those of its test part.

    Raises:
        ProtocolError: the task is of a kind that these phones do not know.
    """
    done = Submission(task=task.id, fingerprint=task.fingerprint, outcome=DONE)
    if task.kind == EVALUATE:
        x, labels = images.x[test], images.labels[test]
        logits = x @ arrays.head.T
        done.num_examples = len(test)
        done.correct = int((logits.argmax(axis=1) == labels).sum())
        done.loss_before = _loss(x, labels, arrays.head)
        done.losses = losses_by_sharpness(logits, labels).mean(axis=0).astype("<f8").tobytes()
        return done
    x, labels = images.x[train], images.labels[train]
    done.num_examples = len(train)
    done.loss_before = done.loss_after = _loss(x, labels, arrays.head)
    if task.kind == STATISTICS:
        sums = feature_statistics(images.select(train), task.num_classes)
        for name in task.fields:
            array = np.ascontiguousarray(getattr(sums, name))
            done.arrays.append(Array(field=name, data=array.tobytes()))
        return done
    if task.kind != SGD or list(task.fields) != ["delta"] or task.HasField("preconditioner"):
        raise ProtocolError(f"task of kind {task.kind} with {list(task.fields)}")
    head = _trained(task, arrays, x, labels)
    done.loss_after = _loss(x, labels, head)
    delta = (head - arrays.head).astype("<f4")
    done.arrays.append(Array(field="delta", data=delta.tobytes()))
    return done


def _trained(task: Task, arrays: Arrays, x: FloatArray, labels: IntArray) -> FloatArray:
    """The head after the task's epochs of SGD."""
    plan = task.training
    head, velocity = arrays.head.copy(), np.zeros_like(arrays.head)
    for epoch in range(plan.epochs):
        order = epoch_order(plan.batch_seed, epoch, len(labels))
        for start in range(0, len(order), plan.batch_size):
            batch = order[start : start + plan.batch_size]
            direction = _gradient(x[batch], labels[batch], head)
            direction += np.float32(plan.momentum) * velocity
            direction += np.float32(plan.weight_decay) * head
            direction += np.float32(plan.mu) * (head - arrays.head)
            if arrays.correction is not None:
                direction += arrays.correction
            velocity = direction
            head = head - np.float32(plan.lr) * direction
    return head


def _gradient(x: FloatArray, labels: IntArray, head: FloatArray) -> FloatArray:
    logits = x @ head.T
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(labels)), labels] -= 1
    gradient: FloatArray = p.T @ x / np.float32(len(labels))
    return gradient


def _loss(x: FloatArray, labels: IntArray, head: FloatArray) -> float:
    logits: npt.NDArray[np.float64] = (x @ head.T).astype(np.float64)
    top = logits.max(axis=1)
    whole = np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top
    return float((whole - logits[np.arange(len(labels)), labels]).mean())
