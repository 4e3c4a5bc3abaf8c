"""torchvision's classification data sets, by class name."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any  # torchvision's objects have no common type

import numpy as np

from common.datasets.base import Dataset, Readable, Reading, assemble, cut
from common.datasets.folder import file_images
from common.datasets.labels import labels_by_name
from common.datasets.verify import verify
from common.datasets.vision_table import TABLE, Arguments, Spec
from common.errors import DataError, MissingExtraError
from common.files import cache_root
from common.progress import stage

__all__ = ["load_vision"]


def load_vision(name: str, reading: Reading) -> Dataset:
    """Load a data set of :data:`~common.datasets.vision_table.TABLE`.

    Its training split, with its validation split if there is one, becomes ``train``; its test split
    becomes ``test``. Without a test split, a part is split off. Images in files are sorted by path,
    because some of torchvision's loaders list them in the disk's order.

    Args:
        name: a row of the table.
        reading: the settings; torchvision's loader gets its root.

    Raises:
        DataError: the data set is missing or damaged, or cannot be downloaded.
        MissingExtraError: scipy is not installed, and the format needs it.
    """
    spec, root = TABLE[name], (reading.root or cache_root() / "data").expanduser()
    arguments = [*spec.train, *([spec.test] if spec.test is not None else [])]
    loaded = [_construct(name, spec, kwargs, root, reading.download) for kwargs in arguments]
    try:
        classes = list(spec.classes(loaded[0]))
        images = [spec.images(part) for part in loaded]
        labels = [np.asarray(spec.labels(part), np.int64) for part in loaded]
        for i, part in enumerate(loaded):
            # Loaders of folders number the classes of each split separately.
            own = labels_by_name(
                list(spec.classes(part)), classes,
                split=f"{name}: its split {arguments[i]}", known_from=str(arguments[0]),
            )  # fmt: skip
            labels[i] = np.where(labels[i] < 0, -1, own[labels[i]])
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as exc:
        raise DataError(f"{name}: the files in {root} are damaged or incomplete ({exc})") from exc

    if arrays := [part for part in images if isinstance(part, np.ndarray)]:
        readable = Readable.array(np.concatenate(arrays))
    else:
        for i, part in enumerate(images):
            order = np.argsort([str(path) for path in part], kind="stable")
            images[i], labels[i] = [Path(part[j]) for j in order], labels[i][order]
        files = file_images([Path(path) for part in images for path in part])
        groups = [
            f"{name} {kwargs}: class {classes[k]}"
            for kwargs, part in zip(arguments, labels, strict=True)
            for k in part.tolist()
        ]
        readable = verify(files, name=name, strict=reading.strict, groups=groups)
    num_train = sum(len(part) for part in labels[: len(spec.train)])
    return assemble(
        name, classes, np.concatenate(labels)[readable.kept], readable, reading,
        split=cut(readable.kept, num_train) if spec.test is not None else None,
    )  # fmt: skip


def _construct(name: str, spec: Spec, kwargs: Arguments, root: Path, download: bool) -> Any:
    factory = getattr(importlib.import_module("torchvision.datasets"), spec.factory or name)
    if spec.downloads:
        kwargs = {**kwargs, "download": False}
    # First without a download, because some loaders refuse to download over existing files.
    try:
        return factory(root, **kwargs)
    except ImportError as exc:
        raise MissingExtraError(exc.name or "scipy", "demo", f"the data set {name}") from exc
    # On a missing or damaged file, a loader may raise any exception.
    except Exception as exc:
        if not (download and spec.downloads):
            how = "set download = true, or put it there" if spec.downloads else "put it there"
            raise DataError(
                f"{name}: not found in {root}, or damaged ({_line(exc)}); {how}"
            ) from exc
    try:
        with stage(f"downloading {name}"):
            return factory(root, **{**kwargs, "download": True})
    except Exception as exc:
        raise DataError(f"{name}: could not be downloaded to {root} ({_line(exc)})") from exc


def _line(exc: Exception) -> str:
    return (str(exc).splitlines() or [""])[0].strip() or type(exc).__name__
