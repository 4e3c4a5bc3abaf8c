"""What a cell of a table says: a class, a client; and classes compared by name."""

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
"""What a column of images, or of their files, is commonly called; the first that is there."""

LABEL_COLUMNS = ("label", "labels", "fine_label", "target", "class", "category", "character")
"""What a column of classes is commonly called; the first that is there."""

_SHOWN = 20  # names in an error
# What pandas, R and spreadsheets write where nothing is known. "none" is none of them: it is what
# people call the class of images without a defect.
_GAPS = frozenset({"nan", "na", "n/a", "null", "#n/a", "<na>", "#na", "nat"})


def is_gap(value: object) -> bool:
    """Whether a cell says that nothing is known: null, NaN, no text, or a usual word for it.

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
        DataError: a fraction, which names no class.

    >>> class_name(True), class_name(3.0), class_name("cat"), class_name(float("nan"))
    ('True', '3', 'cat', None)
    """
    if is_gap(value):
        return None
    if isinstance(value, float):
        if not value.is_integer():
            raise DataError(f"{value} is no class; whole numbers, words or true and false are")
        value = int(value)
    return str(value)


def in_order(names: Iterable[str]) -> list[str]:
    """The distinct ones, sorted; as numbers where all are whole numbers.

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
        names: a class for each example.
        classes: the K classes of the training part, in order.
        split: what the examples are, for the error, with the data set's name.
        known_from: what the classes were taken from, for the error.

    Raises:
        DataError: a class that the training part does not have; names both sides' classes.
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
    """Unknown names, each with the known one that differs from it in case alone.

    >>> named_otherwise(["Cat", "owl"], ["cat", "dog"])
    ['Cat (there is cat)', 'owl']
    """
    nearest = {name.casefold(): name for name in known}
    return [
        f"{name} (there is {nearest[name.casefold()]})" if name.casefold() in nearest else name
        for name in unknown
    ]


def client_column(values: Iterable[object]) -> npt.NDArray[np.generic] | None:
    """A column that may name clients, (n,); None where it holds anything but names and numbers.

    A gap names no client and becomes None, in an array of objects. Whole
    floats are integers: that is what a column of integers becomes where it has gaps.
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
    """Rows without a label are left out, once in words.

    Args:
        name: of the data set.
        cells: what those rows have in the column of labels.
        total: how many rows there are.
        column: its name.
        strict: they are an error.

    Raises:
        DataError: ``strict``, or there are no others.
    """
    if not cells:
        return
    words = sorted({cell.strip() for cell in cells if isinstance(cell, str) and cell.strip()})
    said = f" ({some([repr(word) for word in words])} is no label)" if words else ""
    if strict or len(cells) == total:
        raise DataError(f"{name}: {len(cells)} of {total} rows have no '{column}'{said}")
    logger.warning(
        "%s: left out %d of %d rows without '%s'%s", name, len(cells), total, column, said
    )
