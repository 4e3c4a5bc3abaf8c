"""A folder of images with one sub-folder per class. Part of the device path."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from common.datasets.base import Dataset, EncodedImages, Readable, Reading, assemble, cut
from common.datasets.layout import Labelled, by_class, by_client, by_split, unused
from common.datasets.tree import Folder, scan
from common.datasets.verify import verify
from common.errors import DamagedError, DataError
from common.files import shown
from common.images import heic_is_read, read_image
from common.readback import JsonFile

__all__ = ["file_images", "load_client_folder", "load_folder", "load_split_folder"]

logger = logging.getLogger("fedhead")

_MEMORY = JsonFile("images.json of a device")


def load_folder(
    path: Path, *, classes: Sequence[str], strict: bool = False, memory: Path | None = None
) -> Dataset:
    """A device's own images; the classes are the server's.

    Args:
        path: holds one sub-folder per class; classes without images may be missing.
        classes: all K class names, in the server's order.
        strict: whether a broken image is an error; otherwise it is skipped with a warning.
        memory: file that keeps the result, so that images are not decoded again as long as their
            names, sizes and times do not change.

    Returns:
        A data set whose images are all in ``train``.

    Raises:
        DataError: there is no such folder, no image, or a sub-folder that is not a class of the
            server.
    """
    root = scan(path)
    rows = by_class(root, classes)
    images = _images(root, rows)
    listing = _listing(rows)  # before reading: a file that changes meanwhile is read again
    found = _recalled(memory, listing, images) if memory else None
    if found is None:
        _account(root, rows)
        found = verify(images, name=shown(path), strict=strict)
        if memory:
            _remember(memory, listing, found)
    return _assembled(root, rows, classes, found, Reading(test_fraction=0.0))


def load_split_folder(path: str, reading: Reading) -> Dataset:
    """The folder of the server or of a simulation, with a test set.

    Args:
        path: holds one sub-folder per class, or splits (``train``, ``Training_Set``; ``test``,
            ``val``) with such sub-folders.
        reading: the settings.

    Raises:
        DataError: there is no such folder, there are fewer than two classes, or a class folder has
            no readable images or holds only folders.
    """
    root = scan(reading.path(path))
    train, test = by_split(root)
    return _load(root, train + test, reading, len(train) if test else None)


def load_client_folder(path: str, reading: Reading) -> Dataset:
    """A simulation's folder of clients: one folder per client, in it one sub-folder per class.

    Args:
        path: the folder.
        reading: the settings; a test set is split off the images of all clients.

    Returns:
        A data set with a column "client".

    Raises:
        DataError: as in :func:`load_split_folder`; a client need not have all classes.
    """
    root = scan(reading.path(path))
    return _load(root, by_client(root), reading)


def file_images(files: Sequence[Path], *, follow_links: bool = True) -> EncodedImages:
    """Images in files."""
    return EncodedImages(
        [shown(file) for file in files],
        lambda i: read_image(files[i], follow_links=follow_links),
    )


def _load(
    root: Folder, rows: Sequence[Labelled], reading: Reading, num_train: int | None = None
) -> Dataset:
    _account(root, rows)
    images = _images(root, rows)
    groups = [row.group for row in rows]
    found = verify(images, name=shown(root.path), strict=reading.strict, groups=groups)
    classes = sorted({row.label for row in rows})
    return _assembled(root, rows, classes, found, reading, num_train)


def _images(root: Folder, rows: Sequence[Labelled]) -> EncodedImages:
    if not rows:
        raise DataError(f"{shown(root.path)}: no images")
    return file_images([row.path for row in rows], follow_links=False)


def _account(root: Folder, rows: Sequence[Labelled]) -> None:
    if words := unused(root, rows):
        logger.warning("%s: not used: %s", shown(root.path), words)


def _assembled(
    root: Folder,
    rows: Sequence[Labelled],
    classes: Sequence[str],
    found: Readable,
    reading: Reading,
    num_train: int | None = None,
) -> Dataset:
    number = {label: k for k, label in enumerate(classes)}
    used = [rows[i] for i in found.kept.tolist()]
    labels = np.array([number[row.label] for row in used], np.int64)
    return assemble(
        f"folder:{shown(root.path)}", classes, labels, found, reading,
        split=None if num_train is None else cut(found.kept, num_train),
        columns={"client": np.array([row.client for row in used])} if rows[0].client else None,
    )  # fmt: skip


def _listing(rows: Sequence[Labelled]) -> str:
    """Hex SHA-256 over the files' names, sizes and times of change, and the reader's version."""
    digest = hashlib.sha256(f"2 heic={heic_is_read()}\n".encode())
    for row in rows:
        try:
            status = row.path.lstat()
            state = f"{status.st_mode} {status.st_size} {status.st_mtime_ns}"
        except OSError:  # reported when the file is read
            state = "gone"
        digest.update(os.fsencode(row.path) + f"\0{state}\n".encode())
    return digest.hexdigest()


def _recalled(memory: Path, listing: str, images: EncodedImages) -> Readable | None:
    try:
        found = _MEMORY.read(memory)
        if found["listing"] != listing:
            return None
        kept, skipped = np.array(found["kept"], np.int64), tuple(map(str, found["skipped"]))
        if len(kept) + len(skipped) != len(images):
            return None
        return Readable(images.keep(kept), kept, str(found["key"]), skipped)
    except (OSError, DamagedError):
        return None  # like a missing file


def _remember(memory: Path, listing: str, found: Readable) -> None:
    content = {
        "listing": listing,
        "kept": found.kept.tolist(),
        "key": found.key,
        "skipped": found.skipped,
    }
    with suppress(OSError):  # on a full disk, images are decoded again next time
        _MEMORY.write(memory, content)
