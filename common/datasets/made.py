"""Data sets that a command makes once, in the cache's data folder or in ``data.root``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from common.datasets.base import Dataset, Reading
from common.datasets.table import load_table
from common.errors import DataError
from common.files import cache_root

__all__ = ["CLIPART", "Made", "load_made", "made_folder"]


@dataclass(frozen=True)
class Made:
    """A data set that has to be made.

    Attributes:
        name: its source, and its folder.
        command: makes it.
        table: the file in the folder that names all images.
    """

    name: str
    command: str
    table: str = "labels.csv"


CLIPART = Made("clipart", "make clipart")
_ALL = {made.name: made for made in (CLIPART,)}


def made_folder(made: Made, root: Path | None = None) -> Path:
    """Where the data set lies."""
    return (root or cache_root() / "data") / made.name


def load_made(name: str, reading: Reading) -> Dataset:
    """Load it as the table it is, with the table's columns.

    Raises:
        DataError: it has not been made; names the command.
    """
    made = _ALL[name]
    table = made_folder(made, reading.root) / made.table
    if not table.is_file():
        raise DataError(f"{name}: no {table}; '{made.command}' makes it, once")
    # Column names of another table must not be looked for in this one.
    own = dataclasses.replace(reading, root=None, label_column="", image_column="")
    return dataclasses.replace(load_table(str(table), own), name=name)
