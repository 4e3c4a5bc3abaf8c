"""What a finished run counted on test images: by class, and by client."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from common.errors import RunError
from common.noise import COUNTED_EXAMPLES
from common.types import IntArray
from server.record.runfolder import CLIENTS, CONFUSION
from simulations.report.checked import Count, content_of, parsed

__all__ = ["Clients", "read_clients", "read_confusion"]


class _Confusion(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)

    true: Annotated[list[Count], Field(min_length=1)]
    predicted: list[Count]
    count: list[Count]


class _ClientsFile(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)

    client: Annotated[list[int], Field(min_length=1)]
    train_label_counts: list[list[Count]]
    test_examples: list[Count]
    test_correct: list[Count]
    personal_correct: list[Count] | None = None


@dataclass(frozen=True, eq=False)
class Clients:
    """The clients of one run, n of them.

    Attributes:
        ids: int64 (n,).
        label_counts: int64 (n, K), training examples of each class.
        tests: int64 (n,), examples of their own test parts.
        accuracy: float64 (m,), of the last head on the test parts of the m <= n that have
            COUNTED_EXAMPLES or more.
        personal: the same of each client's own head; None without personal heads.
    """

    ids: IntArray
    label_counts: IntArray
    tests: IntArray
    accuracy: npt.NDArray[np.float64]
    personal: npt.NDArray[np.float64] | None


def read_confusion(file: Path, num_classes: int) -> IntArray:
    """The matrix of the last round, int64 (K, K), rows are true classes.

    Raises:
        RunError, DamagedError: the file is missing, or no such matrix; names it.
    """
    entries = parsed(_Confusion, file, content_of(CONFUSION, file))
    lengths = {len(entries.true), len(entries.predicted), len(entries.count)}
    if len(lengths) > 1 or max(*entries.true, *entries.predicted, 0) >= num_classes:
        raise RunError(f"{file} is damaged (it is not a matrix of {num_classes} classes)")
    if not any(entries.count):
        raise RunError(f"{file} is damaged (it counts no test image)")
    counts = np.zeros((num_classes, num_classes), np.int64)
    counts[entries.true, entries.predicted] = entries.count
    return counts


def read_clients(file: Path, num_classes: int) -> Clients | None:
    """The clients of a run; None if it has not written them.

    Raises:
        RunError, DamagedError: the file is damaged; names it.
    """
    if not file.exists():
        return None
    content = parsed(_ClientsFile, file, content_of(CLIENTS, file))
    counts, total = content.train_label_counts, content.test_examples
    right = [content.test_correct, *filter(None, [content.personal_correct])]
    if {len(content.client), len(counts), len(total), *map(len, right)} != {len(counts)}:
        raise RunError(f"{file} is damaged (its lists are of different lengths)")
    if {num_classes, *map(len, counts)} != {num_classes}:
        raise RunError(f"{file} is damaged (a row of counts is not of {num_classes} classes)")
    examples = np.array(total, np.int64)
    enough = examples >= COUNTED_EXAMPLES
    if any((np.array(hits, np.int64) > examples).any() for hits in right):
        raise RunError(f"{file} is damaged (more right answers than examples)")
    rates = [np.array(hits, np.int64)[enough] / examples[enough] for hits in right]
    return Clients(
        ids=np.array(content.client, np.int64),
        label_counts=np.array(counts, np.int64).reshape(-1, num_classes),
        tests=examples,
        accuracy=rates[0],
        personal=rates[1] if len(rates) > 1 else None,
    )
