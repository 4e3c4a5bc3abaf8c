"""Hugging Face data sets from the Hub or a local folder; offline unless a download is allowed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any  # datasets ships no types

import numpy as np

from common.datasets.base import Dataset, EncodedImages, Reading, assemble, cut
from common.datasets.hub_table import (
    Split,
    find_image_column,
    find_label_column,
    find_splits,
    numbered,
    other_columns,
)
from common.datasets.labels import tell_unlabelled
from common.datasets.verify import verify
from common.errors import DataError, MissingExtraError
from common.images import read_image
from common.progress import stage

__all__ = ["load_hub"]


def load_hub(name: str, reading: Reading) -> Dataset:
    """Load a data set with Hugging Face's ``datasets``.

    ``flwr_datasets.FederatedDataset`` wraps the same call, but it shuffles, does not list the
    splits, and reports its use over the network.

    Args:
        name: a name on the Hub, or a local folder (images, parquet, or ``save_to_disk``);
            ``NAME#SUBSET`` if there are several subsets.
        reading: the settings. A relative folder starts at its root. A validation split is the
            test set if there is no test split. Without ``download`` only the Hub's local cache is
            used.

    Returns:
        A data set whose ``columns`` are the integer and string columns other than the label; an
        entry is None if the row has none. Splits may number the classes differently, so classes
        are compared by name.

    Raises:
        DataError: the data set does not exist, has no column of images or of labels, or its test
            split has other classes.
        MissingExtraError: datasets is not installed.
    """
    parts = find_splits(
        name, _open(name, reading.root, download=reading.download), reading.label_column
    )
    image = find_image_column(name, parts[0].features, reading.image_column)
    label = find_label_column(name, parts[0].features, reading.label_column)
    classes, labels = numbered(name, parts, label)
    there = np.flatnonzero(labels >= 0)
    gaps = [None] * (len(labels) - len(there))
    tell_unlabelled(f"hf:{name}", gaps, len(labels), label, strict=reading.strict)
    images = _images(name, parts, image).keep(there)
    owners = np.repeat([part.name for part in parts], [len(part.rows) for part in parts])
    groups = [f"hf:{name} {owners[i]}: class {classes[labels[i]]}" for i in there.tolist()]
    found = verify(images, name=f"hf:{name}", strict=reading.strict, groups=groups)
    rows = there[found.kept]
    columns = other_columns(parts, exclude=(image, label))
    return assemble(
        f"hf:{name}", classes, labels[rows], found, reading,
        split=cut(rows, sum(len(part.rows) for part in parts[:-1])) if len(parts) > 1 else None,
        columns={column: values[rows] for column, values in columns.items()},
    )  # fmt: skip


def _open(name: str, root: Path | None, *, download: bool) -> list[Split]:
    try:
        import datasets
    except ImportError as exc:
        raise MissingExtraError("datasets", "hub", f"the data set hf:{name}") from exc
    place, _, subset = name.partition("#")
    folder = Path(place).expanduser()
    if root is not None:
        folder = root.expanduser() / folder
    local = folder.is_dir()
    if Path(place).is_absolute() and not local:
        raise DataError(f"hf:{name}: no such folder")
    with _quiet(datasets, offline=not download), stage(f"loading hf:{name}"):
        try:
            if local and any((folder / f).is_file() for f in ("dataset_dict.json", "state.json")):
                loaded, own = datasets.load_from_disk(str(folder)), {}
            else:
                where = str(folder) if local else place
                loaded = datasets.load_dataset(where, subset or None)
                own = _own_features(where, subset) if local else {}
        except DataError as exc:
            raise DataError(f"hf:{name}: {exc}") from exc
        # The type of exception depends on the file format, the Hub and the network.
        except Exception as exc:
            line = (str(exc).splitlines() or [type(exc).__name__])[0]
            how = "" if local or download else "; set download = true to ask the Hub"
            raise DataError(f"hf:{name}: cannot be loaded ({line}){how}") from exc
    if not isinstance(loaded, datasets.DatasetDict):
        loaded = {"train": loaded}
    return [
        Split(str(split), rows, {**rows.features, **own.get(str(split), {})})
        for split, rows in loaded.items()
    ]


def _own_features(folder: str, subset: str) -> dict[str, Mapping[str, Any]]:
    """The features that a local folder's parquet files declare, by split.

    ``datasets`` gives the first file's features to all splits. So it turns another file's class
    numbers into wrong names. On the Hub, a card declares the features once for all files.

    Raises:
        DataError: files of one split name the classes differently.
    """
    import datasets
    import pyarrow.parquet
    from datasets.packaged_modules.parquet.parquet import Parquet

    found: dict[str, Mapping[str, Any]] = {}
    # It has a cache of its own, because the usual one may return features that were not declared.
    with tempfile.TemporaryDirectory(prefix="fedhead-hub-") as cache:
        builder = datasets.load_dataset_builder(folder, subset or None, cache_dir=cache)
    if not isinstance(builder, Parquet) or builder.info.features is not None:
        return found
    for split, files in (builder.config.data_files or {}).items():
        for file in files:
            schema = pyarrow.parquet.read_schema(file)
            features = datasets.Features.from_arrow_schema(schema)
            first = found.setdefault(str(split), features)
            for column in features.keys() & first.keys():
                names = [getattr(f[column], "names", None) for f in (first, features)]
                if names[0] != names[1]:
                    raise DataError(
                        f"{file} numbers the classes of '{column}' differently from the files "
                        f"before it: {names[1]}, expected {names[0]}"
                    )
    return found


@contextmanager
def _quiet(datasets: Any, *, offline: bool) -> Iterator[None]:
    """Inside the block: no progress bars, no usage reports, and no network unless allowed."""
    from huggingface_hub import constants

    switches = [
        (constants, "HF_HUB_DISABLE_TELEMETRY", True),
        (datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False),
    ]
    if offline:
        switches += [(constants, "HF_HUB_OFFLINE", True), (datasets.config, "HF_HUB_OFFLINE", True)]
    before = [(module, switch, getattr(module, switch)) for module, switch, _ in switches]
    had_bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        for module, switch, value in switches:
            setattr(module, switch, value)
        yield
    finally:
        for module, switch, value in before:
            setattr(module, switch, value)
        if had_bars:
            datasets.enable_progress_bars()


def _images(name: str, parts: Sequence[Split], image: str) -> EncodedImages:
    import datasets

    encoded = datasets.Image(decode=False)
    rows = [part.rows.select_columns([image]).cast_column(image, encoded) for part in parts]
    where = [(k, i) for k, part in enumerate(rows) for i in range(len(part))]
    names = [f"hf:{name} {part.name}[{i}]" for part in parts for i in range(len(part.rows))]

    def load(i: int) -> bytes:
        k, row = where[i]
        cell = rows[k][row][image] or {}
        data = cell.get("bytes")
        if data is None and cell.get("path"):
            data = read_image(Path(cell["path"]))
        return bytes(data or b"")

    return EncodedImages(names, load)
