"""Labelled images from any source as one type: ``Dataset``.

Heavy packages are imported only when a source needs them: a device reads its folder with PIL and
NumPy alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import cast

from common.data_sources import KINDS, NAMED, function_of, kind_of
from common.datasets.base import Dataset, Reading
from common.datasets.folder import load_folder
from common.datasets.own import Examples
from common.datasets.split import stratified_split
from common.errors import DataError

__all__ = [
    "Dataset",
    "Examples",
    "Reading",
    "load_dataset",
    "load_folder",
    "loader_of",
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
    raise DataError(f"unknown data set '{source}'; {_nearest(source, TABLE)}")


def loader_of(row: str) -> Loader:
    """The function that a row of ``common.data_sources`` names."""
    module, _, name = row.partition(":")
    return cast(Loader, getattr(importlib.import_module(f"common.datasets.{module}"), name))


def _nearest(source: str, table: Iterable[str]) -> str:
    known = {name.lower(): name for name in (*NAMED, *table)}
    near = get_close_matches(source.lower(), known, n=3, cutoff=0.5)
    if near:
        return f"nearest known: {', '.join(known[name] for name in near)}"
    kinds = [f"{name}:{kind.rest}" for name, kind in KINDS.items()]
    return f"known: {', '.join([*known.values(), *kinds, 'MODULE:FUNCTION'])}"
