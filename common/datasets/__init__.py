"""Labelled pictures from anywhere, behind one value: :class:`Dataset`.

Nothing heavy is imported before a source needs it: a device reads its folder with PIL and
NumPy alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from common.datasets.base import Dataset
from common.datasets.folder import load_client_folder, load_folder, load_split_folder
from common.datasets.split import stratified_split
from common.errors import DataError
from common.files import cache_root

__all__ = ["Dataset", "load_dataset", "load_folder", "stratified_split"]

_FOLDERS = {"folder": load_split_folder, "folder-by-client": load_client_folder}


def load_dataset(  # what [data] says, key by key
    source: str,
    *,
    root: Path | None,
    download: bool,
    strict: bool,
    test_fraction: float,
    seed: int,
    label_column: str = "",
    image_column: str = "",
) -> Dataset:
    """Load a data set by name.

    Args:
        source: "mnist5k", "digits", a torchvision class name such as "CIFAR10",
            "folder:PATH", "folder-by-client:PATH", "csv:PATH" or "hf:NAME".
        root: where data sets lie (default: a folder of fedhead's cache); a relative PATH is
            looked up below it.
        download: whether a missing data set may be fetched.
        strict: a broken picture, or one that a table names and that is missing or without a label,
            is an error instead of being skipped with a warning.
        test_fraction: share of a source without a test set that becomes one, in (0, 1).
        seed: the run's seed, for that split.
        label_column: of "csv:" and "hf:"; empty: one with a usual name.
        image_column: likewise.

    Raises:
        DataError: the data are not there or cannot be used; one line that says why.
        MissingExtraError: a package that the source needs is not installed.
    """
    kind, colon, rest = source.partition(":")
    if source == "mnist5k":
        from common.datasets.builtin import load_mnist5k

        return load_mnist5k(test_fraction=test_fraction, seed=seed)
    if source == "digits":
        from common.datasets.builtin import load_digits

        return load_digits(test_fraction=test_fraction, seed=seed)
    if colon and kind in _FOLDERS:
        path = Path(rest).expanduser()
        return _FOLDERS[kind](
            root / path if root else path, strict=strict, test_fraction=test_fraction, seed=seed
        )
    if colon and kind == "csv":
        from common.datasets.table import load_table

        path = Path(rest).expanduser()
        return load_table(
            root / path if root else path, strict=strict, test_fraction=test_fraction, seed=seed,
            label_column=label_column, image_column=image_column,
        )  # fmt: skip
    data_root = (root or cache_root() / "data").expanduser()
    if colon and kind == "hf":
        from common.datasets.hub import load_hub

        return load_hub(
            rest, root=root, download=download, strict=strict,
            test_fraction=test_fraction, seed=seed,
            label_column=label_column, image_column=image_column,
        )  # fmt: skip
    from common.datasets.vision_table import TABLE

    if source in TABLE:
        from common.datasets.vision import load_vision

        return load_vision(
            source, root=data_root, download=download, strict=strict,
            test_fraction=test_fraction, seed=seed,
        )  # fmt: skip
    raise DataError(f"unknown data set '{source}'; {_nearest(source, TABLE)}")


def _nearest(source: str, table: Iterable[str]) -> str:
    known = {name.lower(): name for name in ("mnist5k", "digits", *table)}
    near = get_close_matches(source.lower(), known, n=3, cutoff=0.5)
    names = ", ".join(known[name] for name in near or known)
    return (
        f"nearest known: {names}"
        if near
        else f"known: {names}, folder:PATH, folder-by-client:PATH, csv:PATH, hf:NAME"
    )
