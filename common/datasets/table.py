"""A table of labels beside images, such as ``labels.csv``; competitions often use this form."""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.datasets.base import Dataset, Reading, assemble
from common.datasets.folder import file_images
from common.datasets.labels import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    class_name,
    client_column,
    in_order,
    labels_by_name,
    tell_unlabelled,
)
from common.datasets.named_files import NamedFiles
from common.datasets.split_names import split_of
from common.datasets.table_hints import header_hint, one_hot_hint, zeros_hint
from common.datasets.verify import verify
from common.errors import DataError
from common.types import IntArray
from common.words import some

__all__ = ["load_table"]

logger = logging.getLogger("fedhead")

_SHOWN = 3  # names that a warning gives
_SHOWN_COLUMNS = 12
_MOST_BYTES = 500_000_000


@dataclass(frozen=True)
class _Row:
    """One line of the table, its cells stripped.

    Attributes:
        line: the line's number in the file, from 1.
        cells: as many as the header has.
    """

    line: int
    cells: tuple[str, ...]


@dataclass(frozen=True)
class _Column:
    """A column that a table must have: its purpose, the key that sets it, and its usual names."""

    what: str
    key: str
    usual: tuple[str, ...]


_IMAGES = _Column("images", "data.image-column", IMAGE_COLUMNS)
_LABELS = _Column("labels", "data.label-column", LABEL_COLUMNS)


def load_table(place: str, reading: Reading) -> Dataset:
    """Load the images that a table names, from the table's folder and the folders below it.

    A cell names an image by its path from the table's folder, by the end of its path, or by its
    name without the suffix; exactly one image must fit. A column ``split`` says which rows are
    train and which test.

    Args:
        place: the table's path. It is UTF-8 with a header; commas, semicolons or tabs separate
            cells.
        reading: the settings.

    Returns:
        A data set whose ``columns`` are all further columns, as text; an entry is None if its cell
        is empty.

    Raises:
        DataError: the table cannot be read, lacks a column, names an image twice with different
            cells, names an image outside its folder, or has a test class that the training part
            does not have.
    """
    path, strict = reading.path(place), reading.strict
    header, rows = _read(path)
    image = _column(path, header, rows, _IMAGES, reading.image_column)
    label = _column(path, header, rows, _LABELS, reading.label_column)
    for row in rows:
        _refuse_controls(path, row.line, (row.cells[image], row.cells[label]))
    labelled = [row for row in rows if class_name(row.cells[label]) is not None]
    gaps = [row.cells[label] for row in rows if class_name(row.cells[label]) is None]
    tell_unlabelled(str(path), gaps, len(rows), header[label], strict=strict)
    roles = _roles(path, header, labelled)
    files = _found(path, labelled, image, strict=strict)
    used = [row for row in labelled if row.line in files]
    if emptied := sorted({r.cells[label] for r in labelled} - {r.cells[label] for r in used}):
        raise DataError(f"{path}: all images of class {some(emptied, _SHOWN)} are missing")
    classes, labels = _labels(path, used, label, roles)
    images = file_images([files[row.line] for row in used], follow_links=False)
    groups = [
        f"{path}: class {classes[k]} to {roles[row.line]} on"
        for row, k in zip(used, labels.tolist(), strict=True)
    ]
    found = verify(images, name=str(path), strict=strict, groups=groups)
    used = [used[i] for i in found.kept.tolist()]
    is_test = np.array([roles[row.line] == "test" for row in used], bool)
    columns = {
        name: values
        for i, name in enumerate(header)
        if i not in (image, label)
        and (values := client_column(row.cells[i] for row in used)) is not None
    }
    return assemble(
        f"csv:{path}", classes, labels[found.kept], found, reading,
        split=(np.flatnonzero(~is_test), np.flatnonzero(is_test)) if is_test.any() else None,
        columns=columns,
    )  # fmt: skip


def _text(path: Path) -> str:
    if not path.is_file():
        what = (
            "is a folder, expected a table such as labels.csv" if path.is_dir() else "no such file"
        )
        raise DataError(f"{path}: {what}")
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise DataError(f"{path}: over {_MOST_BYTES:,} bytes, too large for a table of images")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise DataError(f"{path}: byte {exc.start} is not UTF-8; save the table as UTF-8") from exc
    except OSError as exc:
        raise DataError(f"{path}: cannot be read ({exc.strerror})") from exc


def _read(path: Path) -> tuple[list[str], list[_Row]]:
    text = _text(path)
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[_Row] = []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append(_Row(reader.line_num, tuple(cell.strip() for cell in cells)))
    except csv.Error as exc:
        raise DataError(f"{path}: line {reader.line_num} is not a table's line ({exc})") from exc
    if len(rows) < 2:
        raise DataError(f"{path}: no rows below a header")
    header = list(rows[0].cells)
    _refuse_controls(path, rows[0].line, header)
    for row in rows[1:]:
        if len(row.cells) != len(header):
            raise DataError(
                f"{path}: line {row.line} has {len(row.cells)} cells, expected {len(header)} as "
                "in the header"
            )
    return header, rows[1:]


def _refuse_controls(path: Path, line: int, cells: Sequence[str]) -> None:
    """Refuse control characters: a line break in a name comes from a stray quote, for example."""
    for cell in cells:
        if re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", cell):
            raise DataError(f"{path}: line {line} has control characters: {cell[:80]!r}")


def _column(
    path: Path, header: Sequence[str], rows: Sequence[_Row], meant: _Column, wanted: str
) -> int:
    """Position of the column ``wanted``, or else of the first with a usual name, in any case."""
    lowered = [name.lower().replace(" ", "_") for name in header]
    names, candidates = (list(header), [wanted]) if wanted else (lowered, list(meant.usual))
    for name in candidates:
        if names.count(name) > 1:
            raise DataError(f"{path}: {names.count(name)} columns are called '{name}'")
        if name in names:
            if more := [other for other in candidates if other in names and other != name]:
                logger.warning(
                    "%s: column '%s' gives the %s, although there is '%s'; %s can name another",
                    path, name, meant.what, "', '".join(more), meant.key,
                )  # fmt: skip
            return names.index(name)
    key = meant.key
    problem = (
        f"{key}={wanted!r} is not a column of" if wanted else f"no column of {meant.what} among"
    )
    hint = "" if wanted else f"; set {key}"
    hint += header_hint(header)
    if meant is _LABELS:
        hint += one_hot_hint(header, [row.cells for row in rows])
    shown = some([name[:40] for name in header], _SHOWN_COLUMNS)
    raise DataError(f"{path}: {problem} {shown}{hint}")


def _roles(path: Path, header: Sequence[str], rows: Sequence[_Row]) -> dict[int, str]:
    """For each line "train" or "test".

    If there is a test split, validation joins train, as in torchvision's data sets.
    """
    lowered = [name.lower() for name in header]
    if "split" not in lowered:
        return {row.line: "train" for row in rows}
    place = lowered.index("split")
    roles = {row.line: split_of(row.cells[place]) for row in rows}
    for row in rows:
        if not roles[row.line]:
            raise DataError(
                f"{path}: line {row.line} is of the split '{row.cells[place]}', expected train, "
                "validation or test"
            )
    given = set(roles.values())
    if "train" not in given:
        raise DataError(f"{path}: no row is of the split train")
    joined = "train" if "test" in given else "test"
    return {line: joined if role == "val" else str(role) for line, role in roles.items()}


def _labels(
    path: Path, rows: Sequence[_Row], label: int, roles: Mapping[int, str]
) -> tuple[list[str], IntArray]:
    names = [row.cells[label] for row in rows]
    if all(re.fullmatch(r"-?\d+(\.0+)?", name) for name in names):
        # Integers in a column with gaps were written as floats.
        names = [name.partition(".")[0] for name in names]
    classes = in_order(n for n, row in zip(names, rows, strict=True) if roles[row.line] == "train")
    return classes, labels_by_name(
        names, classes, split=f"{path}: its test split", known_from="its training split"
    )


def _found(path: Path, rows: Sequence[_Row], image: int, *, strict: bool) -> dict[int, Path]:
    """For each line the image's file. Missing images are left out; repeated rows count once."""
    files = NamedFiles(path)
    found: dict[int, Path] = {}
    missing = []
    for row in rows:
        try:
            file = files.find(row.cells[image])
        except DataError as exc:
            raise DataError(f"{path}: line {row.line}: {exc}") from exc
        if file is None:
            missing.append(row.cells[image])
        else:
            found[row.line] = file
    if missing:
        names = some(missing, _SHOWN)
        line = f"{len(missing)} of {len(rows)} images are not in {path.parent}: {names}"
        if files.others:
            line += f" (not read in it: {files.others})"
        line += zeros_hint(files, missing)
        if strict or not found:
            raise DataError(f"{path}: {line}")
        logger.warning("%s: left out: %s", path, line)
    if unnamed := files.count - len(set(found.values())):
        logger.info("%s: %d images in its folder have no row with a label", path, unnamed)
    return _once(path, rows, found)


def _once(path: Path, rows: Sequence[_Row], found: Mapping[int, Path]) -> dict[int, Path]:
    """The first line of each image. An image must not be in both train and test."""
    first: dict[Path, _Row] = {}
    for row in rows:
        if row.line in found:
            known = first.setdefault(found[row.line], row)
            if known.cells != row.cells:
                raise DataError(
                    f"{path}: lines {known.line} and {row.line} both name "
                    f"{found[row.line].name}, but with different cells"
                )
    if repeated := len(found) - len(first):
        logger.warning("%s: %d rows repeat another and count once", path, repeated)
    return {row.line: file for file, row in first.items()}
