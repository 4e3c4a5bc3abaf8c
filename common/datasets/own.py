"""A user's own data: the result of the function that ``data.source`` names, as a data set."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.data_sources import function_of
from common.datasets.base import Dataset, Readable, Reading, assemble, cut
from common.datasets.folder import file_images
from common.datasets.labels import class_name, client_column, in_order, labels_by_name
from common.datasets.verify import verify
from common.errors import DataError, FedheadError
from common.own_code import file_of, found_in
from common.types import IntArray
from common.words import some

__all__ = ["Examples", "load_own"]

_SHOWN = 3  # labels that an error names


@dataclass(frozen=True, eq=False)
class Examples:
    """The result of a function for ``data.source = "module:function"``: labelled images.

    Attributes:
        images: uint8 (n, H, W) or (n, H, W, 3); or n paths of image files, where a relative one
            starts from the folder of the function's file.
        labels: n class names; or n numbers, which are indices if ``classes`` is given.
        classes: names of the K classes, in order; empty: the sorted training labels.
        test: the server's test set, of the same classes; None: a part of the images is split off.
        columns: further columns of n entries each, such as clients' ids; None: no entry.
    """

    images: npt.NDArray[np.uint8] | Sequence[str | os.PathLike[str]]
    labels: npt.ArrayLike
    classes: Sequence[str] = ()
    test: Examples | None = None
    columns: Mapping[str, Sequence[object] | npt.NDArray[np.generic]] = field(default_factory=dict)


def load_own(source: str, reading: Reading) -> Dataset:
    """Call a user's function, without arguments, and check what it returns.

    Args:
        source: ``module:function``.
        reading: the settings; its root is the module's folder. Without it, Python's search path
            is used.

    Raises:
        DataError: there is no such function, it fails, or its data does not fit together; one
            line names the reason.
    """
    function = found_in(*(function_of(source) or ("", "")), reading.root)
    made = _called(source, function)
    parts = [made] if made.test is None else [made, made.test]
    _check_members(source, parts)
    for part in parts:
        _check(source, part)
    classes, labels = _labels(source, parts)
    groups = [
        f"{source}: class {classes[k]} to {what} on"
        for what, own in zip(("train", "test"), labels, strict=False)
        for k in own.tolist()
    ]
    images = _images(source, file_of(function).parent, parts, groups, strict=reading.strict)
    columns = {name: _column(source, name, parts)[images.kept] for name in made.columns}
    return assemble(
        source, classes, np.concatenate(labels)[images.kept], images, reading,
        split=cut(images.kept, len(labels[0])) if len(parts) > 1 else None, columns=columns,
    )  # fmt: skip


def _called(source: str, function: Callable[[], object]) -> Examples:
    try:
        with redirect_stdout(sys.stderr):  # a command's output may be one JSON object
            made = function()
    except FedheadError as exc:
        raise DataError(f"{source}: {exc}") from exc
    # A user's code may raise anything.
    except (Exception, SystemExit) as exc:
        own = str(file_of(function))
        frames = traceback.extract_tb(exc.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == own]
        words = (str(exc).splitlines() or [""])[0].strip()
        where = f"{Path(own).name}, line {lines[-1]}" if lines else Path(own).name
        raise DataError(f"{source}: {type(exc).__name__}: {words} ({where})") from exc
    if not isinstance(made, Examples):
        raise DataError(
            f"{source} returned {type(made).__name__}, expected common.datasets.Examples"
        )
    return made


def _check_members(source: str, parts: Sequence[Examples]) -> None:
    for part in parts:
        if not isinstance(part, Examples):
            raise DataError(f"{source}: test is {type(part).__name__}, expected Examples")
        for name, value, kinds in (
            ("classes", part.classes, (list, tuple, np.ndarray)),
            ("columns", part.columns, (Mapping,)),
        ):
            if not isinstance(value, kinds):
                expected = "a mapping" if Mapping in kinds else "a list of names"
                raise DataError(f"{source}: {name} is {type(value).__name__}, expected {expected}")


def _check(source: str, part: Examples) -> None:
    """Check types and lengths of images, labels and columns."""
    try:
        problem = _problem(part)
    except (TypeError, ValueError) as exc:  # a generator, a list of lists
        problem = f"images, labels or columns are not lists of equal entries ({exc})"
    if problem:
        raise DataError(f"{source}: {problem}")


def _problem(part: Examples) -> str:
    images = part.images
    if not len(images):
        return "no images"
    if _is_array(images):
        problem = _pixels_problem(np.asarray(images))
    else:
        wrong = [type(image).__name__ for image in images if not _is_path(image)]
        problem = f"images are of type {wrong[0]}, expected one array or paths" if wrong else ""
        if not wrong and any("\0" in os.fspath(image) for image in images):
            problem = "an image's path has a NUL character in it"
    shape = np.asarray(part.labels).shape
    if not problem and len(shape) != 1:
        problem = f"labels have shape {shape}, expected (n,), one for each image"
    lengths = {"labels": shape[0]} if shape else {}
    lengths |= {f"column '{name}'": len(values) for name, values in part.columns.items()}
    for what, length in lengths.items():
        if not problem and length != len(images):
            problem = f"{len(images)} images, but {length} entries in {what}"
    return problem


def _is_array(images: object) -> bool:
    return isinstance(images, np.ndarray) and images.dtype.kind not in "UO"


def _is_path(image: object) -> bool:
    return isinstance(image, str | os.PathLike)


def _pixels_problem(pixels: npt.NDArray[np.generic]) -> str:
    if pixels.dtype != np.uint8:
        return f"pixels are {pixels.dtype}, expected uint8 from 0 to 255"
    if pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[3] == 3):
        return "" if all(pixels.shape) else f"images have shape {pixels.shape}: no pixels"
    hint = ""
    if pixels.ndim == 4 and pixels.shape[1] == 3:
        hint = "; images.transpose(0, 2, 3, 1) puts the colours last"
    return f"images have shape {pixels.shape}, expected (n, H, W) or (n, H, W, 3){hint}"


def _labels(source: str, parts: Sequence[Examples]) -> tuple[list[str], list[IntArray]]:
    """The classes, and each part's labels among them, int64."""
    classes = [str(name) for name in parts[0].classes]
    if twice := [name for name in classes if classes.count(name) > 1]:
        raise DataError(f"{source}: several classes are called '{twice[0]}'")
    if len(parts) > 1 and [*map(str, parts[1].classes)] not in ([], classes):
        raise DataError(f"{source}: test has its own classes, expected those of the training part")
    given = [np.asarray(part.labels) for part in parts]
    if classes and all(labels.dtype.kind in "iub" for labels in given):
        for labels in given:
            if wrong := sorted({int(k) for k in labels if not 0 <= k < len(classes)}):
                shown = some([str(label) for label in wrong], _SHOWN)
                raise DataError(
                    f"{source}: labels {shown}, expected 0 to {len(classes) - 1}: there are "
                    f"{len(classes)} classes"
                )
        return classes, [labels.astype(np.int64) for labels in given]
    names = [[_class(source, value) for value in labels.tolist()] for labels in given]
    known_from = "classes" if classes else "the training part"
    classes = classes or in_order(names[0])
    return classes, [
        labels_by_name(own, classes, split=f"{source}: its {what} part", known_from=known_from)
        for own, what in zip(names, ("training", "test"), strict=False)
    ]


def _class(source: str, value: object) -> str:
    if not (value is None or isinstance(value, str | int | float)):
        raise DataError(f"{source}: a label is of type {type(value).__name__}")
    try:
        name = class_name(value)
    except DataError as exc:
        raise DataError(f"{source}: a label of {exc}") from exc
    if name is None:
        raise DataError(f"{source}: an image has no label; leave it out")
    return name


def _images(
    source: str, folder: Path, parts: Sequence[Examples], groups: Sequence[str], *, strict: bool
) -> Readable:
    if all(_is_array(part.images) for part in parts):
        arrays = [np.asarray(part.images, np.uint8) for part in parts]
        if len({array.shape[1:] for array in arrays}) > 1:
            raise DataError(
                f"{source}: training images are {arrays[0].shape[1:]}, test images "
                f"{arrays[1].shape[1:]}, expected one size"
            )
        return Readable.array(np.concatenate(arrays))
    if any(_is_array(part.images) for part in parts):
        raise DataError(f"{source}: training and test images must both be arrays, or both paths")
    files = file_images([folder / os.fspath(path) for part in parts for path in part.images])
    return verify(files, name=source, strict=strict, groups=groups)


def _column(source: str, name: str, parts: Sequence[Examples]) -> npt.NDArray[np.generic]:
    """One column over all parts; the test part may not have it."""
    cells: list[object] = []
    for part in parts:
        values = part.columns.get(name)
        cells += [None] * len(part.images) if values is None else np.asarray(values).tolist()
    for cell in cells:
        is_large = isinstance(cell, int) and abs(cell) >= 2**63
        if is_large or not (cell is None or isinstance(cell, str | int | float)):
            what = "a number beyond 64 bits" if is_large else f"an entry of {type(cell).__name__}"
            raise DataError(f"{source}: column '{name}' has {what}, expected names or numbers")
    column = client_column(cells)
    if column is None:
        raise DataError(f"{source}: column '{name}' holds fractions, expected names or numbers")
    return column
