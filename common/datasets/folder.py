"""A folder of pictures: one sub-folder a class. Part of the device path."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from common.datasets.base import Dataset, EncodedImages, Verified, assemble, cut, verify
from common.errors import DamagedError, DataError
from common.readback import JsonFile

__all__ = ["file_images", "load_folder", "load_split_folder"]

EXTENSIONS = (
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png",
    ".pnm", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
logger = logging.getLogger("fedhead")

_MEMORY = JsonFile("pictures.json of a device")
_TEST_NAMES = ("test", "val", "valid", "validation")


def load_folder(
    path: Path,
    *,
    classes: Sequence[str] | None = None,
    strict: bool = False,
    memory: Path | None = None,
) -> Dataset:
    """A device's own pictures; the server says which classes there are.

    Args:
        path: holds one sub-folder a class; classes the device has no pictures of may be missing.
        classes: all K class names, in the server's order; None: the names of the sub-folders.
        strict: a broken picture is an error instead of being skipped with a warning.
        memory: file that keeps what was found, so that pictures whose names, sizes and times
            have not changed since are not decoded again.

    Returns:
        A data set whose pictures are all in ``train``.

    Raises:
        DataError: no such folder, no images, or a sub-folder that is no class of the server's.
    """
    folders = _folders(path)
    if classes is None:
        classes = [folder.name for folder in folders]
    if unknown := [folder.name for folder in folders if folder.name not in classes]:
        known = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
        raise DataError(
            f"{path}: folders that name no class of the server: {', '.join(unknown)}; "
            f"its classes are {known}"
        )
    files = [(file, folder.name) for folder in folders for file in _images(folder)]
    return _load(
        path, files, tuple(classes), None,
        strict=strict, test_fraction=0.0, seed=0, memory=memory,
    )  # fmt: skip


def load_split_folder(path: Path, *, strict: bool, test_fraction: float, seed: int) -> Dataset:
    """The server's or a simulation's folder, with a test set.

    Args:
        path: one sub-folder a class, or ``train`` and ``test`` (or ``val``) with those below.
        strict: a broken picture is an error instead of being skipped with a warning.
        test_fraction: cut off by ``seed`` where there is no test folder.
        seed: the run's seed.

    Raises:
        DataError: no such folder, an empty class folder, fewer than two classes.
    """
    folders = {folder.name: folder for folder in _folders(path)}
    test_name = next((name for name in _TEST_NAMES if name in folders), None)
    if "train" not in folders or (test_name is None and len(folders) > 1):
        train, test = _classes(path), []
    else:
        if unused := sorted(folders.keys() - {"train", test_name}):
            logger.warning("%s: not used: %s", path, ", ".join(unused))
        train = _classes(folders["train"])
        test = _classes(folders[test_name]) if test_name else []
    classes = tuple(sorted({label for _, label in train}))
    if unknown := sorted({label for _, label in test} - set(classes)):
        raise DataError(f"{path}: classes in {test_name} but not in train: {', '.join(unknown)}")
    return _load(
        path, train + test, classes, len(train) if test else None,
        strict=strict, test_fraction=test_fraction, seed=seed,
    )  # fmt: skip


def file_images(files: Sequence[Path]) -> EncodedImages:
    """Pictures in files."""
    return EncodedImages([str(file) for file in files], lambda i: files[i].read_bytes())


def _load(
    path: Path,
    files: Sequence[tuple[Path, str]],
    classes: tuple[str, ...],
    num_train: int | None,
    *,
    strict: bool,
    test_fraction: float,
    seed: int,
    memory: Path | None = None,
) -> Dataset:
    if not files:
        raise DataError(f"{path}: no images")
    label_of = {name: k for k, name in enumerate(classes)}
    paths = [file for file, _ in files]
    images = file_images(paths)
    if memory is None:
        kept, key, skipped = verify(images, name=str(path), strict=strict)
    else:
        listing = _listing(paths)  # before they are read: what changes meanwhile is read again
        kept, key, skipped = _recalled(memory, listing) or _remembered(
            memory, listing, verify(images, name=str(path), strict=strict)
        )
    labels = np.array([label_of[files[i][1]] for i in kept.tolist()], np.int64)
    split = cut(kept, num_train) if num_train is not None else None
    return assemble(
        f"folder:{path}", classes, labels, images.keep(kept), key, split=split,
        test_fraction=test_fraction, seed=seed, skipped=skipped,
    )  # fmt: skip


def _listing(files: Sequence[Path]) -> str:
    """SHA-256 over the files' names, sizes and times of change, hex."""
    digest = hashlib.sha256()
    for file in files:
        try:
            stat = file.stat()
        except OSError as exc:
            raise DataError(f"{file}: cannot be read ({exc.strerror})") from exc
        digest.update(f"{file}\0{stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _recalled(memory: Path, listing: str) -> Verified | None:
    try:
        found = _MEMORY.read(memory)
        if found["listing"] != listing:
            return None
        return np.array(found["kept"], np.int64), str(found["key"]), tuple(found["skipped"])
    except (OSError, DamagedError):
        return None  # as good as none


def _remembered(memory: Path, listing: str, found: Verified) -> Verified:
    kept, key, skipped = found
    content = {"listing": listing, "kept": kept.tolist(), "key": key, "skipped": skipped}
    with suppress(OSError):  # a full disk: then they are decoded again
        _MEMORY.write(memory, content)
    return found


def _folders(path: Path) -> list[Path]:
    if not path.is_dir():
        raise DataError(f"{path}: no such folder")
    try:
        folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError as exc:
        raise DataError(f"{path}: cannot be read ({exc.strerror})") from exc
    if not folders:
        raise DataError(f"{path}: no class folders in it; one sub-folder a class is expected")
    return folders


def _classes(path: Path) -> list[tuple[Path, str]]:
    found = []
    for folder in _folders(path):
        files = _images(folder)
        if not files:
            others = [file.name for file in folder.iterdir() if file.is_file()]
            hint = f" (it holds {len(others)} other files, such as {min(others)})" if others else ""
            raise DataError(f"{folder}: class folder without images{hint}")
        found += [(file, folder.name) for file in files]
    return found


def _images(folder: Path) -> list[Path]:
    found = []
    for parent, folders, names in os.walk(folder, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(parent, name)
            for name in sorted(names)
            if not name.startswith(".") and Path(name).suffix.lower() in EXTENSIONS
        ]
    return found
