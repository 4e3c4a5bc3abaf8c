"""Which classes are taken for which: the matrix as the page draws it, and a line for each class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from common.noise import wilson
from common.types import IntArray
from simulations.report.comparison import Entry, Setting

__all__ = ["ClassLine", "class_lines", "confusions", "legend", "matrix"]

_MAX_ROWS = 60
"""With more classes the labels of a matrix are too small to read."""
_KEPT = 40
"""So many classes, those with the most mistakes, then have rows of their own."""
_FULL = (13, 100)
"""Mistakes of a class's images that have the fullest colour, where no cell is worse.

A matrix of few mistakes stays pale.
"""


@dataclass(frozen=True)
class ClassLine:
    """What the last head makes of one class, of all seeds together.

    Attributes:
        tests: test images of the class.
        right: of these, right answers.
        accuracy: None without test images.
        low, high: its 95 % interval, by the images of one seed: seeds may share them.
        taken_for: the commonest mistake and how often it happened; None if there is none.
    """

    name: str
    tests: int
    right: int
    accuracy: float | None
    low: float
    high: float
    taken_for: tuple[str, int] | None


def total(entry: Entry) -> IntArray:
    """Summed over seeds, int64 (K, K), rows are true classes."""
    summed: IntArray = np.sum([run.confusion for run in entry.runs], axis=0)
    return summed


def class_lines(setting: Setting) -> list[ClassLine]:
    """A line for each class of the best strategy, the lowest accuracy first."""
    winner = setting.entries[0]
    counts, seeds = total(winner), len(winner.runs)
    lines = []
    for k, name in enumerate(setting.classes):
        tests, right = int(counts[k].sum()), int(counts[k, k])
        rate = right / tests if tests else None
        low, high = (0.0, 1.0) if rate is None else wilson(rate, max(1, tests // seeds))
        wrong = counts[k].copy()
        wrong[k] = 0
        worst = int(wrong.argmax())
        taken = (setting.classes[worst], int(wrong[worst])) if wrong[worst] else None
        lines.append(ClassLine(name, tests, right, rate, low, high, taken))
    return sorted(lines, key=lambda one: math.inf if one.accuracy is None else one.accuracy)


def confusions(setting: Setting, count: int = 5) -> list[tuple[str, str, int]]:
    """The best strategy's commonest mistakes: true class, what it was taken for, how often."""
    errors = _errors(total(setting.entries[0]))
    order = np.argsort(-errors, axis=None, kind="stable")[:count]
    pairs = (np.unravel_index(int(flat), errors.shape) for flat in order)
    names = setting.classes
    return [(names[i], names[j], int(errors[i, j])) for i, j in pairs if errors[i, j]]


def _errors(counts: IntArray) -> IntArray:
    return counts - np.diag(np.diagonal(counts))


@dataclass(frozen=True)
class _Matrix:
    """A confusion matrix to draw.

    Attributes:
        names: of its rows and columns; with many classes the last one is all others together.
        others: how many those are; 0 if every class has a row.
        counts: rows are true classes.
        shades: 0 for none to 1 for the fullest colour; None where no mistake can be: the
            diagonal.
        fullest: mistakes and images of the class that have the fullest colour.
    """

    names: list[str]
    others: int
    counts: list[list[int]]
    shades: list[list[float | None]]
    fullest: tuple[int, int]


def matrix(setting: Setting) -> dict[str, Any]:
    """The best strategy's matrix as plain values, see :class:`_Matrix`.

    A mistake is shaded by its count n and its share of the class alike: by the root of n times
    the lower end of the share's 95 % interval. So one mistake on a class's two images, which may
    be chance, is paler than five on a hundred.
    """
    return asdict(_matrix(total(setting.entries[0]), setting.classes))


def _matrix(counts: IntArray, classes: Sequence[str]) -> _Matrix:
    counts, names, others = _few(counts, classes)
    totals = counts.sum(axis=1)
    errors = _errors(counts)
    worst, fullest = _shade(*_FULL), _FULL
    shades: list[list[float | None]] = [[0.0] * len(names) for _ in names]
    for i, j in np.argwhere(errors):
        count, of = int(errors[i, j]), int(totals[i])
        shades[i][j] = shade = _shade(count, of)
        if shade > worst:
            worst, fullest = shade, (count, of)
    for i, row in enumerate(shades):
        row[:] = [
            None if i == j else round((value or 0.0) / worst, 3) for j, value in enumerate(row)
        ]
    return _Matrix(names, others, counts.tolist(), shades, fullest)


def _shade(count: int, of: int) -> float:
    return math.sqrt(count * wilson(count / of, of)[0])


def _few(counts: IntArray, classes: Sequence[str]) -> tuple[IntArray, list[str], int]:
    """Of many classes those with the most mistakes, in order, and all others as one."""
    if len(classes) <= _MAX_ROWS:
        return counts, list(classes), 0
    errors = _errors(counts)
    mistakes = errors.sum(axis=0) + errors.sum(axis=1)
    kept = np.sort(np.argsort(-mistakes, kind="stable")[:_KEPT])
    place = np.full(len(classes), _KEPT)
    place[kept] = np.arange(_KEPT)
    few = np.zeros((_KEPT + 1, _KEPT + 1), np.int64)
    np.add.at(few, (place[:, None], place[None, :]), counts)
    others = len(classes) - _KEPT
    return few, [*(classes[k] for k in kept), f"{others} others"], others


def legend(drawn: dict[str, Any]) -> str:
    """What the fullest colour of :func:`matrix` means."""
    count, of = drawn["fullest"]
    return f"{count:,} of {of:,} images"
