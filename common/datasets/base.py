"""The interface of every data set, and how its images are read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from common.datasets.split import stratified_split
from common.errors import DataError
from common.images import ByteArray, check_image, decode_array, decode_bytes
from common.machine import cores
from common.seeding import Purpose
from common.types import IntArray

__all__ = [
    "ArrayImages",
    "Dataset",
    "EncodedImages",
    "Images",
    "Readable",
    "Reading",
    "assemble",
    "cut",
]


@dataclass(frozen=True)
class Reading:
    """Settings for reading a source: the keys of [data] beside its name.

    Attributes:
        root: folder of torchvision's data sets (None: a folder in fedhead's cache); the relative
            path of a source starts here too (None: in the working folder).
        download: whether a missing data set may be downloaded.
        strict: whether a broken image is an error, and a table's image that is missing or has no
            label. Otherwise such images are left out with a warning.
        test_fraction: in [0, 1); share of the images that becomes the test set if the source has
            none.
        seed: seed of that split.
        label_column: a table's column of classes; empty: one with a usual name.
        image_column: a table's column of images, likewise.
    """

    root: Path | None = None
    download: bool = False
    strict: bool = False
    test_fraction: float = 0.2
    seed: int = 0
    label_column: str = ""
    image_column: str = ""

    def path(self, text: str) -> Path:
        """The full path of a source's path."""
        path = Path(text).expanduser()
        return self.root / path if self.root else path


class Images(Protocol):
    """n images, read on demand."""

    def __len__(self) -> int: ...

    def read(self, index: IntArray, size: int) -> ByteArray:
        """uint8 (m, 3, size, size) of the images at these positions."""
        ...


@dataclass(frozen=True, eq=False)
class ArrayImages:
    """Images in memory.

    Attributes:
        pixels: uint8 (n, H, W) or (n, H, W, 3).
    """

    pixels: ByteArray

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, index: IntArray, size: int) -> ByteArray:
        out = np.empty((len(index), 3, size, size), np.uint8)
        for row, i in enumerate(index):
            out[row] = decode_array(self.pixels[i], size)
        return out

    @property
    def key(self) -> str:
        """Hex SHA-256 over shape and pixels."""
        digest = hashlib.sha256(repr(self.pixels.shape).encode())
        digest.update(np.ascontiguousarray(self.pixels).data)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class EncodedImages:
    """Images encoded as PNG, JPEG, ... in files or table rows; read by threads, never kept.

    Attributes:
        names: each image's name in errors.
        load: returns the encoded bytes of the image at a position; several threads call it.
    """

    names: Sequence[str]
    load: Callable[[int], bytes]

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: IntArray, size: int) -> ByteArray:
        out = np.empty((len(index), 3, size, size), np.uint8)

        def fill(row: int) -> None:
            i = int(index[row])
            out[row] = decode_bytes(self._bytes(i), size, name=self.names[i])

        with ThreadPoolExecutor(cores()) as pool:
            for _ in pool.map(fill, range(len(index))):
                pass
        return out

    def check(self, i: int) -> bytes | DataError:
        """SHA-256 of the image's bytes, or an error that says what is wrong with it."""
        try:
            data = self._bytes(i)
            check_image(data, name=self.names[i])
        except DataError as exc:
            return exc
        return hashlib.sha256(data).digest()

    def keep(self, index: IntArray) -> EncodedImages:
        """Only the images at these positions."""
        load, kept = self.load, index.tolist()
        return EncodedImages([self.names[i] for i in kept], lambda i: load(kept[i]))

    def _bytes(self, i: int) -> bytes:
        try:
            return self.load(i)
        except OSError as exc:
            raise DataError(f"{self.names[i]}: cannot be read ({exc.strerror or exc})") from exc


@dataclass(frozen=True, eq=False)
class Readable:
    """The images of a data set that can be read.

    Attributes:
        source: these m images.
        kept: int64 (m,), ascending: their positions among all images.
        key: hex SHA-256 over their bytes or pixels, in order.
        skipped: for each of the other images, what is wrong with it.
    """

    source: Images
    kept: IntArray
    key: str
    skipped: tuple[str, ...] = ()

    @classmethod
    def array(cls, pixels: ByteArray) -> Readable:
        """All of some images in memory, (n, H, W) or (n, H, W, 3)."""
        source = ArrayImages(pixels)
        return cls(source, np.arange(len(source)), source.key)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images, split for clients and server.

    Attributes:
        name: the source it was loaded from.
        classes: names of the K classes; label k means ``classes[k]``.
        labels: int64 (n,).
        train: int64 positions, ascending: the images that clients divide among themselves.
        test: int64 positions, ascending: the server's test set; empty on a device.
        source: where the images come from; use ``images``.
        images_key: hex SHA-256 over the images alone, in order; features depend on it.
        content_key: hex SHA-256 over images, labels, class names and split.
        columns: further columns of n entries each, such as user ids for natural partitions.
        skipped: broken images that were left out, each with the reason.
        has_own_test: whether the source itself says which images test.
    """

    name: str
    classes: tuple[str, ...]
    labels: IntArray
    train: IntArray
    test: IntArray
    source: Images
    images_key: str
    content_key: str
    columns: Mapping[str, npt.NDArray[np.generic]] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    has_own_test: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def images(self, index: IntArray, size: int) -> ByteArray:
        """Read the images at these positions, in this order.

        Args:
            index: int64 (m,).
            size: side of the square, in pixels.

        Returns:
            uint8 (m, 3, size, size); see ``common.images.decode_file``.

        Raises:
            DataError: an image has become unreadable since the data set was loaded.
        """
        return self.source.read(index, size)


def assemble(
    name: str,
    classes: Sequence[str],
    labels: IntArray,
    images: Readable,
    reading: Reading,
    *,
    split: tuple[IntArray, IntArray] | None = None,
    columns: Mapping[str, npt.NDArray[np.generic]] | None = None,
) -> Dataset:
    """Check the parts and make a data set of them.

    Args:
        name: the data set's name.
        classes: names of the K classes.
        labels: int64 (n,), of the n readable images.
        images: the readable images.
        reading: settings for a stratified test set, if there is no ``split``.
        split: positions of train and test.
        columns: further columns of n entries each.

    Raises:
        DataError: no images, fewer than two classes, or a label without a class.
    """
    if len(labels) == 0:
        raise DataError(f"{name}: no images")
    if len(classes) < 2:
        raise DataError(f"{name}: {len(classes)} class ({', '.join(classes)}), expected at least 2")
    if labels.min() < 0 or labels.max() >= len(classes):
        raise DataError(
            f"{name}: labels run from {labels.min()} to {labels.max()}, "
            f"but there are {len(classes)} classes"
        )
    train, test = split or stratified_split(
        labels, reading.test_fraction, reading.seed, Purpose.SPLIT
    )
    digest = hashlib.sha256(images.key.encode())
    for array in (labels, train, test):
        digest.update(len(array).to_bytes(8, "little"))
        digest.update(array.astype("<i8").data)
    digest.update("\0".join(classes).encode())
    for column, cells in sorted((columns or {}).items()):
        digest.update(f"\0{column}\0{cells.tolist()!r}".encode())
    return Dataset(
        name, tuple(classes), labels, train, test, images.source, images.key, digest.hexdigest(),
        columns or {}, images.skipped, split is not None,
    )  # fmt: skip


def cut(kept: IntArray, num_train: int) -> tuple[IntArray, IntArray]:
    """Positions in ``kept`` of entries below ``num_train``, and of the rest."""
    return np.flatnonzero(kept < num_train), np.flatnonzero(kept >= num_train)
