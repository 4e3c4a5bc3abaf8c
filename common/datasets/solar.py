"""The data set ``elpv``: photographs of solar cells in electroluminescence, from a PyPI package.

Buerhop-Lutz et al.: "A Benchmark for Visual Identification of Defective Solar Cells in
Electroluminescence Imagery", EU PVSEC 2018. Its images are under CC BY-NC-SA 4.0, so they are read
from the installed package and are not part of this one.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import numpy as np

from common.datasets.base import Dataset, Reading, assemble
from common.datasets.folder import file_images
from common.datasets.verify import verify
from common.errors import DataError, MissingExtraError

__all__ = ["load_elpv"]

_PACKAGE = "elpv-dataset"
_TABLE = "elpv_dataset/data/labels.csv"
_CLASSES = ("functional", "defective")
_MODULES = 44  # the cells were cut from so many modules


def load_elpv(name: str, reading: Reading) -> Dataset:
    """2,624 grey images of solar cells, 300 x 300: functional, or probably defective.

    A cell is defective if experts gave that a probability of at least one half. The column
    ``module`` has 44 blocks of neighbouring cells: cells of a module follow each other, but the
    table has no numbers of modules. The column ``type`` says monocrystalline or polycrystalline.

    Raises:
        MissingExtraError: elpv-dataset is not installed.
        DataError: its files are damaged.
    """
    table = _table(name)
    try:
        rows = [line.split() for line in table.read_text("utf-8").splitlines() if line.strip()]
        paths = [table.parent / path for path, _, _ in rows]
        labels = np.array([float(probability) >= 0.5 for _, probability, _ in rows], np.int64)
    except (OSError, ValueError) as exc:
        raise DataError(f"{table}: not the table of elpv-dataset ({exc})") from exc
    found = verify(file_images(paths), name=name, strict=reading.strict)
    columns = {
        "module": np.arange(len(rows), dtype=np.int64) * _MODULES // max(len(rows), 1),
        "type": np.array([kind for _, _, kind in rows]),
    }
    kept = {column: cells[found.kept] for column, cells in columns.items()}
    return assemble(name, _CLASSES, labels[found.kept], found, reading, columns=kept)


def _table(name: str) -> Path:
    # Found without importing the package.
    try:
        listed = [file for file in files(_PACKAGE) or () if str(file) == _TABLE]
    except PackageNotFoundError as exc:
        raise MissingExtraError(_PACKAGE, "elpv", f"the data set {name}") from exc
    if not listed:
        raise DataError(f"{_PACKAGE} has no {_TABLE}: pip install --force-reinstall {_PACKAGE}")
    return Path(str(listed[0].locate()))
