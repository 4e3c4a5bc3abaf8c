"""Reads a table's cells as classes or clients, and compares classes by name."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt

from common.errors import DataError
from common.types import IntArray
from common.words import some

__all__ = [
    "IMAGE_COLUMNS",
    "LABEL_COLUMNS",
    "class_name",
    "client_column",
    "in_order",
    "is_gap",
    "labels_by_name",
    "named_otherwise",
    "tell_unlabelled",
]

logger = logging.getLogger("fedhead")

IMAGE_COLUMNS = (
    "image", "img", "picture", "pixels", "filename", "file_name", "file", "path", "filepath",
    "image_path", "image_name", "image_id", "id",
)  # fmt: skip
"""Usual names of a column of images or their files, in order of preference."""

LABEL_COLUMNS = ("label", "labels", "fine_label", "target", "class", "category", "character")
"""Usual names of a column of classes, in order of preference."""

_SHOWN = 20  # names that an error gives
# What pandas, R and spreadsheets write for an unknown value. "none" is not among them, because
# people use it as the class of images without a defect.
_GAPS = frozenset({"nan", "na", "n/a", "null", "#n/a", "<na>", "#na", "nat"})


def is_gap(value: object) -> bool:
    """Whether a cell's value is unknown: null, NaN, no text, or a usual word for it.

    >>> [is_gap(value) for value in (None, float("nan"), " ", "NaN", "n/a", "none", 0)]
    [True, True, True, True, True, False, False]
    """
    if isinstance(value, float):
        return math.isnan(value)
    text = "" if value is None else str(value).strip()
    return not text or text.lower() in _GAPS


def class_name(value: object) -> str | None:
    """The class that a cell names; None for a gap, see ``is_gap``.

    Raises:
        DataError: the value is a fraction, which cannot name a class.

    >>> class_name(True), class_name(3.0), class_name("cat"), class_name(float("nan"))
    ('True', '3', 'cat', None)
    """
    if is_gap(value):
        return None
    if isinstance(value, float):
        if not value.is_integer():
            raise DataError(f"{value} is not a class, expected a whole number, a word or a boolean")
        value = int(value)
    return str(value)


def in_order(names: Iterable[str]) -> list[str]:
    """The distinct names, sorted; as numbers if all are whole numbers.

    >>> in_order(["10", "9", "9"]), in_order(["10", "9", "a"])
    (['9', '10'], ['10', '9', 'a'])
    """
    distinct = set(names)
    numbers = all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in distinct)
    return sorted(distinct, key=(lambda name: (int(name), name)) if numbers else None)


def labels_by_name(
    names: Sequence[str], classes: Sequence[str], *, split: str, known_from: str
) -> IntArray:
    """Numbers of these classes among ``classes``, int64 (n,).

    Args:
        names: each example's class.
        classes: the K classes of the training part, in order.
        split: words for the examples and their data set, for the error.
        known_from: words for the source of ``classes``, for the error.

    Raises:
        DataError: the training part does not have a class; the error names both sides' classes.
    """
    number = {name: k for k, name in enumerate(classes)}
    if unknown := sorted(set(names) - number.keys()):
        raise DataError(
            f"{split} has classes that {known_from} does not have: "
            f"{some(named_otherwise(unknown, classes), _SHOWN)} "
            f"({known_from} has {some(classes, _SHOWN)})"
        )
    return np.array([number[name] for name in names], np.int64)


def named_otherwise(unknown: Sequence[str], known: Iterable[str]) -> list[str]:
    """Unknown names, each with the known name that differs only in case.

    >>> named_otherwise(["Cat", "owl"], ["cat", "dog"])
    ['Cat (there is cat)', 'owl']
    """
    nearest = {name.casefold(): name for name in known}
    return [
        f"{name} (there is {nearest[name.casefold()]})" if name.casefold() in nearest else name
        for name in unknown
    ]


def client_column(values: Iterable[object]) -> npt.NDArray[np.generic] | None:
    """A column that may name clients, (n,); None if it holds anything but names and numbers.

    An unknown value becomes None, in an array of objects. Whole floats count as integers, because
    a column of integers with gaps is read as floats.
    """
    cells: list[int | str | None] = []
    for value in values:
        if is_gap(value):
            cells.append(None)
            continue
        if isinstance(value, float):
            if not value.is_integer():
                return None
            value = int(value)
        cells.append(cast("int | str", value))
    return np.array(cells, object if None in cells else None)


def tell_unlabelled(
    name: str, cells: Sequence[object], total: int, column: str, *, strict: bool
) -> None:
    """Log once that rows without a label are left out.

    Args:
        name: the data set's name.
        cells: the label cells of those rows.
        total: number of all rows.
        column: name of the column of labels.
        strict: whether such rows are an error.

    Raises:
        DataError: ``strict``, or there are no other rows.
    """
    if not cells:
        return
    words = sorted({cell.strip() for cell in cells if isinstance(cell, str) and cell.strip()})
    said = f" ({some([repr(word) for word in words])} is not a label)" if words else ""
    if strict or len(cells) == total:
        raise DataError(f"{name}: {len(cells)} of {total} rows have no '{column}'{said}")
    logger.warning(
        "%s: left out %d of %d rows without '%s'%s", name, len(cells), total, column, said
    )
