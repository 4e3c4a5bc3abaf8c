"""Labelled images from any source as one type: ``Dataset``.

Heavy packages are imported only when a source needs them: a device reads its folder with PIL and
NumPy alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import cast

from common.data_sources import KINDS, NAMED, function_of, kind_of
from common.datasets.base import Dataset, Reading
from common.datasets.folder import load_folder
from common.datasets.own import Examples
from common.datasets.split import stratified_split
from common.datasets.tree import near_folder
from common.errors import DataError

__all__ = [
    "Dataset",
    "Examples",
    "Reading",
    "is_source",
    "load_dataset",
    "load_folder",
    "loader_of",
    "nearest_sources",
    "stratified_split",
]

Loader = Callable[[str, Reading], Dataset]


def load_dataset(source: str, reading: Reading) -> Dataset:
    """Load a data set by name.

    Args:
        source: a source of ``common.data_sources``, such as "mnist5k" or "folder:PATH", a
            torchvision class name such as "CIFAR10", or a user's own "module:function".
        reading: the settings.

    Raises:
        DataError: the data is missing or cannot be used; one line says why.
        MissingExtraError: a package that the source needs is not installed.
    """
    if kind := kind_of(source):
        return loader_of(kind.loader)(source.partition(":")[2], reading)
    if source in NAMED:
        return loader_of(NAMED[source])(source, reading)
    if function_of(source):
        return loader_of("own:load_own")(source, reading)
    from common.datasets.vision_table import TABLE

    if source in TABLE:
        return loader_of("vision:load_vision")(source, reading)
    raise DataError(f"unknown data set '{source}'; {nearest_sources(source, reading)}")


def is_source(text: str) -> bool:
    """Whether a text has the form of a source; the data themselves may be missing.

    >>> is_source("digits"), is_source("folder:photos"), is_source("photos")
    (True, True, False)
    """
    from common.datasets.vision_table import TABLE

    return bool(kind_of(text) or text in NAMED or function_of(text) or text in TABLE)


def loader_of(row: str) -> Loader:
    """The function that a row of ``common.data_sources`` names."""
    module, _, name = row.partition(":")
    return cast(Loader, getattr(importlib.import_module(f"common.datasets.{module}"), name))


def nearest_sources(text: str, reading: Reading) -> str:
    """For messages: the sources that a text which is none may stand for, or else all forms."""
    from common.datasets.vision_table import TABLE

    known = {name.lower(): name for name in (*NAMED, *TABLE)}
    near = [known[name] for name in get_close_matches(text.lower(), known, n=3, cutoff=0.6)]
    if folder := near_folder(reading.path(text)):
        near.insert(0, f"folder:{Path(text).with_name(folder)}")
    if near:
        return f"nearest known: {', '.join(near)}"
    kinds = [f"{name}:{kind.rest}" for name, kind in KINDS.items()]
    return f"known: {', '.join([*NAMED, *kinds, 'MODULE:FUNCTION'])}, torchvision's (as CIFAR10)"
