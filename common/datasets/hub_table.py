"""A Hugging Face data set's splits and columns: choosing and reading them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any  # datasets ships no types

import numpy as np
import numpy.typing as npt

from common.datasets.labels import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    class_name,
    client_column,
    in_order,
    labels_by_name,
)
from common.datasets.split_names import split_of
from common.errors import DataError
from common.types import IntArray

__all__ = [
    "Split",
    "find_image_column",
    "find_label_column",
    "find_splits",
    "numbered",
    "other_columns",
]

logger = logging.getLogger("fedhead")


@dataclass(frozen=True, eq=False)
class Split:
    """One split's rows, and its own files' features, which may name classes differently."""

    name: str
    rows: Any
    features: Mapping[str, Any]

    @property
    def role(self) -> str:
        """Train, val or test if its name says so; otherwise empty."""
        return split_of(self.name) or ""

    def values(self, column: str) -> list[Any]:
        return list(self.rows[column][:])


def find_image_column(name: str, features: Mapping[str, Any], wanted: str) -> str:
    """The column ``wanted``, or else one of images, or else one of bytes with a usual name.

    Raises:
        DataError: there is none.
    """
    import datasets

    def holds_images(feature: Any) -> bool:
        is_struct = isinstance(feature, dict) and "bytes" in feature
        binary = getattr(feature, "dtype", "") in ("binary", "large_binary")
        return isinstance(feature, datasets.Image) or is_struct or binary

    fitting = [column for column, feature in features.items() if holds_images(feature)]
    if wanted:
        if wanted not in fitting:
            raise DataError(
                f"hf:{name}: data.image-column={wanted!r} is not a column of images "
                f"(images: {', '.join(fitting) or 'none'}; columns: {', '.join(features)})"
            )
        return wanted
    declared = [column for column in fitting if isinstance(features[column], datasets.Image)]
    named = [column for column in IMAGE_COLUMNS if column in fitting]
    for column in (*declared, *named):  # ``named``: bytes that are not declared as images
        return column
    raise DataError(
        f"hf:{name}: no column of images among {', '.join(features)}; set data.image-column"
    )


def find_label_column(name: str, features: Mapping[str, Any], wanted: str) -> str:
    """The column ``wanted``, or else one of declared classes, or else one with a usual name.

    Raises:
        DataError: there is none.
    """
    import datasets

    fitting = [c for c in features if _is_scalar(features[c], ("int", "uint", "bool", "float"))]
    if wanted:
        if wanted not in fitting:
            raise DataError(
                f"hf:{name}: data.label-column={wanted!r} is not a column of labels "
                f"(known: {', '.join(fitting) or 'none'})"
            )
        return wanted
    named = [c for c in LABEL_COLUMNS if c in fitting]
    declared = [c for c in features if isinstance(features[c], datasets.ClassLabel)]
    for column in (*(c for c in named if c in declared), *declared, *named):
        return column
    raise DataError(
        f"hf:{name}: no column of labels among {', '.join(features)}; set data.label-column"
    )


def _is_scalar(feature: Any, numbers: tuple[str, ...]) -> bool:
    return str(getattr(feature, "dtype", "")).startswith((*numbers, "string", "large_string"))


def find_splits(name: str, splits: Sequence[Split], label_column: str) -> list[Split]:
    """The splits to use: first those to train on; the last is the test set if its role says so.

    If there is a test split, the validation split joins the training split, as in torchvision's
    data sets; otherwise it is the test set. Competitions publish test splits whose labels are
    missing or all -1. These and splits with other names are not used, and the log names them.
    """
    train = next((split for split in splits if split.role == "train"), splits[0])
    label = find_label_column(name, train.features, label_column)
    labelled = [
        split
        for split in splits
        if split is train or (label in split.rows.features and {*split.values(label)} - {None, -1})
    ]
    by_role = {role: [s for s in labelled if s.role == role] for role in ("val", "test")}
    others = [*by_role["val"][:1], *by_role["test"][:1]]
    used = [train, *(split for split in others if split is not train)]
    if unused := [split for split in splits if split not in used]:
        words = [
            f"{split.name} ({len(split.rows)} rows{'' if split in labelled else ' without labels'})"
            for split in unused
        ]
        logger.warning("hf:%s: not used: %s", name, ", ".join(words))
    return used


def numbered(name: str, parts: Sequence[Split], label: str) -> tuple[list[str], IntArray]:
    """The training split's classes, and each row's class number; -1: the row has no class."""
    try:
        named = [_names(part, label) for part in parts]
    except DataError as exc:
        raise DataError(f"hf:{name}: '{label}': {exc}") from exc
    declared = getattr(parts[0].features[label], "names", None)
    classes = list(declared or in_order(name for name in named[0] if name is not None))
    labels = []
    for part, names in zip(parts, named, strict=True):
        has = np.array([n is not None and (n != "-1" or n in classes) for n in names], bool)
        numbers = np.full(len(names), -1, np.int64)
        numbers[has] = labels_by_name(
            [n for n, there in zip(names, has, strict=True) if n is not None and there], classes,
            split=f"hf:{name}: {part.name}", known_from=parts[0].name,
        )  # fmt: skip
        labels.append(numbers)
    return classes, np.concatenate(labels)


def _names(part: Split, label: str) -> list[str | None]:
    """Each row's class name, by the numbers of this split's own files."""
    declared = getattr(part.features[label], "names", None)
    if not declared:
        return [class_name(value) for value in part.values(label)]
    values = [None if value == -1 else value for value in part.values(label)]
    if wrong := {v for v in values if v is not None and not 0 <= v < len(declared)}:
        raise DataError(
            f"{part.name} has label {min(wrong)}, but there are {len(declared)} classes"
        )
    return [None if value is None else declared[value] for value in values]


def other_columns(
    parts: Sequence[Split], exclude: tuple[str, str]
) -> dict[str, npt.NDArray[np.generic]]:
    """Columns that may name clients, each over all parts in order; see ``client_column``."""
    found: dict[str, npt.NDArray[np.generic]] = {}
    for column, feature in parts[0].rows.features.items():
        if column in exclude or not _is_scalar(feature, ("int", "uint", "float")):
            continue
        if all(column in part.rows.features for part in parts):
            values = client_column(value for part in parts for value in part.values(column))
            if values is not None:
                found[column] = values
    return found
