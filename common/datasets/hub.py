"""Hugging Face data sets, from the Hub or a local folder, offline unless told otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any  # datasets ships no types

import numpy as np
import numpy.typing as npt

from common.datasets.base import Dataset, EncodedImages, assemble, cut, verify
from common.errors import DataError, MissingExtraError
from common.progress import stage
from common.types import IntArray

__all__ = ["load_hub"]

Columns = dict[str, npt.NDArray[np.generic]]

_TEST_SPLITS = ("test", "validation", "valid", "val")
_IMAGE_COLUMNS = ("image", "img", "picture", "pixels")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "target", "class", "category", "character")


def load_hub(
    name: str, *, root: Path | None, download: bool, strict: bool, test_fraction: float, seed: int
) -> Dataset:
    """Load a data set with Hugging Face's ``datasets``, which flwr-datasets brings along.

    ``flwr_datasets.FederatedDataset`` wraps the same call, but shuffles, does not tell which
    splits there are, and reports its use over the network.

    Args:
        name: a name on the Hub, or a local folder (images, parquet, or ``save_to_disk``);
            ``NAME#SUBSET`` where there are several.
        root: a relative folder is looked up here; None: the working directory.
        download: whether the Hub may be asked; otherwise its local cache must do.
        strict: a broken picture is an error instead of being skipped with a warning.
        test_fraction: cut off by ``seed`` where there is no test or validation split.
        seed: the run's seed.

    Returns:
        A data set whose ``columns`` are the integer and string columns beside the label.

    Raises:
        DataError: not there, or without a column of pictures or of labels.
        MissingExtraError: flwr-datasets is not installed.
    """
    splits = _open(name, root, download=download)
    train_split = "train" if "train" in splits else next(iter(splits))
    train = splits[train_split]
    image = _image_column(name, train.features)
    label = _label_column(name, train.features)
    parts = {train_split: train}
    for split in _TEST_SPLITS:
        if split in splits and split != train_split and _labelled(splits[split], label):
            parts[split] = splits[split]
            break
    classes, labels = _labels(name, list(parts.values()), label)
    columns = _columns(list(parts.values()), exclude=(image, label))
    images = _images(name, parts, image)
    kept, key, skipped = verify(images, name=f"hf:{name}", strict=strict)
    return assemble(
        f"hf:{name}", classes, labels[kept], images.keep(kept), key,
        split=cut(kept, len(train)) if len(parts) > 1 else None,
        test_fraction=test_fraction, seed=seed, skipped=skipped,
        columns={column: values[kept] for column, values in columns.items()},
    )  # fmt: skip


def _open(name: str, root: Path | None, *, download: bool) -> Mapping[str, Any]:
    try:
        import datasets
    except ImportError as exc:
        raise MissingExtraError("flwr-datasets", "simulation", f"the data set hf:{name}") from exc
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
                loaded = datasets.load_from_disk(str(folder))
            else:
                loaded = datasets.load_dataset(str(folder) if local else place, subset or None)
        # What comes out depends on the file format, the Hub and the network.
        except Exception as exc:
            line = (str(exc).splitlines() or [type(exc).__name__])[0]
            how = "" if local or download else "; set download = true to ask the Hub"
            raise DataError(f"hf:{name}: cannot be loaded ({line}){how}") from exc
    return loaded if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}


@contextmanager
def _quiet(datasets: Any, *, offline: bool) -> Iterator[None]:
    """No progress bars, no usage reports, and no network unless allowed; undone afterwards."""
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


def _image_column(name: str, features: Mapping[str, Any]) -> str:
    import datasets

    for column, feature in features.items():
        if isinstance(feature, datasets.Image):
            return column
    for column in _IMAGE_COLUMNS:  # bytes that nobody declared to be pictures
        feature = features.get(column)
        is_struct = isinstance(feature, dict) and "bytes" in feature
        if is_struct or getattr(feature, "dtype", "") in ("binary", "large_binary"):
            return column
    raise DataError(f"hf:{name}: no column of images among {', '.join(features)}")


def _label_column(name: str, features: Mapping[str, Any]) -> str:
    import datasets

    named = [c for c in _LABEL_COLUMNS if c in features and _is_scalar(features[c])]
    declared = [c for c in features if isinstance(features[c], datasets.ClassLabel)]
    for column in (*(c for c in named if c in declared), *declared, *named):
        return column
    raise DataError(f"hf:{name}: no column of labels among {', '.join(features)}")


def _is_scalar(feature: Any) -> bool:
    return str(getattr(feature, "dtype", "")).startswith(("int", "uint", "string", "large_string"))


def _values(part: Any, column: str) -> list[Any]:
    return list(part[column][:])


def _labelled(part: Any, label: str) -> bool:
    """Competitions publish test splits whose labels are missing or all -1."""
    return label in part.features and all(v not in (None, -1) for v in _values(part, label))


def _labels(name: str, parts: list[Any], label: str) -> tuple[list[str], IntArray]:
    values = [value for part in parts for value in _values(part, label)]
    if None in values:
        raise DataError(f"hf:{name}: {values.count(None)} rows have no '{label}'")
    declared = getattr(parts[0].features[label], "names", None)
    if declared:
        return list(declared), np.array(values, np.int64)
    distinct = sorted(set(values))
    number = {value: k for k, value in enumerate(distinct)}
    return [str(value) for value in distinct], np.array([number[v] for v in values], np.int64)


def _columns(parts: list[Any], exclude: tuple[str, str]) -> Columns:
    found: Columns = {}
    for column, feature in parts[0].features.items():
        if column in exclude or not _is_scalar(feature):
            continue
        if all(column in part.features for part in parts):
            values = [value for part in parts for value in _values(part, column)]
            if None not in values:  # a client id that is missing names no client
                found[column] = np.array(values)
    return found


def _images(name: str, parts: Mapping[str, Any], image: str) -> EncodedImages:
    import datasets

    encoded = datasets.Image(decode=False)
    rows = [part.select_columns([image]).cast_column(image, encoded) for part in parts.values()]
    where = [(k, i) for k, part in enumerate(rows) for i in range(len(part))]
    names = [f"hf:{name} {split}[{i}]" for split, part in parts.items() for i in range(len(part))]

    def load(i: int) -> bytes:
        k, row = where[i]
        cell = rows[k][row][image] or {}
        data = cell.get("bytes")
        if data is None and cell.get("path"):
            data = Path(cell["path"]).read_bytes()
        return bytes(data or b"")

    return EncodedImages(names, load)
