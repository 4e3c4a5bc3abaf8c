"""Classifies images with an exported model, for ``fedhead predict``."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np
import torch

from common.datasets.base import Dataset
from common.datasets.tree import not_read, scan
from common.errors import DataError
from common.files import shown
from common.images import ByteArray, decode_file
from common.machine import cores
from common.types import IntArray
from server.export.exported import Exported, exported
from server.export.usage import PREDICT_ONLY

__all__ = ["Prediction", "classify", "find_images", "measure", "predict", "write_csv"]

logger = logging.getLogger("fedhead")

# The batch size bounds the memory; logits do not depend on it.
_BATCH = 32


@dataclass(frozen=True)
class Prediction:
    """The best class of one image.

    Attributes:
        path: the image's path, as given.
        class_name: the class's name in the model's card.
        probability: the class's probability, in [0, 1].
    """

    path: Path
    class_name: str
    probability: float


def find_images(paths: Sequence[Path]) -> list[Path | DataError]:
    """The image files among files and folders.

    Args:
        paths: files, and folders whose images on all levels are taken, sorted. In folders, hidden
            files and files without an image's suffix are left out and counted in a warning.

    Returns:
        Paths in the given order; for a folder that cannot be read or holds no image, an error.
    """
    found: list[Path | DataError] = []
    for path in paths:
        found += _below(path) if path.is_dir() else [path]
    return found


def _below(path: Path) -> Sequence[Path | DataError]:
    try:
        root = scan(path)
    except DataError as exc:
        return [exc]
    images = [image for folder in root.below() for image in folder.images]
    if others := not_read(root):
        logger.warning("%s: not used: %s", shown(path), others)
    return images or [DataError(f"{shown(path)}: no images in it")]


def predict(
    model: Exported, images: Iterable[Path | DataError]
) -> Iterator[Prediction | DataError]:
    """Classify image files.

    Args:
        model: from ``exported``.
        images: files of any format, size and colour that ``common.images`` reads; errors are
            passed on.

    Yields:
        A prediction for each image, in the given order; for an unreadable one, an error that
        names it.

    Raises:
        ExportError: the model does not run, or contradicts its card.
    """
    size, classes, waiting = model.card.input_size, model.card.classes, iter(images)

    def decode(path: Path | DataError) -> tuple[Path, ByteArray] | DataError:
        if isinstance(path, DataError):
            return path
        try:
            return path, decode_file(path, size)
        except DataError as exc:
            return exc

    with ThreadPoolExecutor(cores()) as pool:
        while batch := list(islice(waiting, _BATCH)):
            decoded = list(pool.map(decode, batch))
            pixels = [one[1] for one in decoded if not isinstance(one, DataError)]
            best = iter(classify(model, np.stack(pixels)) if pixels else ())
            for one in decoded:
                if isinstance(one, DataError):
                    yield one
                else:
                    k, probability = next(best)
                    yield Prediction(one[0], classes[k], probability)


def classify(model: Exported, pixels: ByteArray) -> list[tuple[int, float]]:
    """The best class of each image, and its probability.

    Args:
        model: from ``exported``.
        pixels: uint8 (n, 3, S, S), RGB, S from the model's card.

    Raises:
        ExportError: the model does not run, or contradicts its card.
    """
    logits = torch.from_numpy(model.logits(pixels)).double()
    if model.card.target not in PREDICT_ONLY:
        logits /= model.card.temperature
    best, index = logits.softmax(dim=1).max(dim=1)
    return list(zip(index.tolist(), best.tolist(), strict=True))


def write_csv(stream: TextIO, predictions: Iterable[Prediction]) -> None:
    r"""Write a table with the columns image, class and probability.

    Bytes of a name that are not UTF-8 are written as ``\xHH``.
    """
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["image", "class", "probability"])
    for p in predictions:
        name = os.fsencode(p.path).decode(errors="backslashreplace")
        writer.writerow([name, p.class_name, f"{p.probability:.6f}"])


def measure(model: Path, dataset: Dataset, positions: IntArray) -> float:
    """The accuracy of an exported model on labelled images.

    Args:
        model: a file that ``exported`` loads.
        dataset: images, with the classes of the model's card.
        positions: positions of the images to use, at least one.

    Returns:
        The accuracy in [0, 1].

    Raises:
        As in ``exported`` and ``predict``.
    """
    right = 0
    with exported(model) as loaded:
        for start in range(0, len(positions), _BATCH):
            index = positions[start : start + _BATCH]
            best = loaded.logits(dataset.images(index, loaded.card.input_size)).argmax(axis=1)
            right += int((best == dataset.labels[index]).sum())
    return right / len(positions)
