"""What an exported model says about pictures; what ``fedhead predict`` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.backbone._deprecations import accepted_deprecations
from common.backbone.frozen import quantized_engine
from common.datasets.base import Dataset
from common.errors import ExportError
from common.images import ByteArray, decode_file
from common.types import IntArray
from server.card import read_card

__all__ = ["Prediction", "measure", "predict"]

# Bounds memory; logits do not depend on it.
_BATCH = 32


@dataclass(frozen=True)
class Prediction:
    """The best class of one picture.

    Attributes:
        path: as it was given.
        class_name: from the model's card.
        probability: of that class, in [0, 1].
    """

    path: Path
    class_name: str
    probability: float


def predict(model: Path, images: Sequence[Path]) -> list[Prediction]:
    """Classify picture files with an exported model.

    Args:
        model: a ``model.pt``.
        images: files of any format, size and colour that ``common.images`` reads.

    Returns:
        One prediction for each picture, in the order given.

    Raises:
        ExportError: the model file is damaged, not ours, or does not run.
        BackboneError: this torch lacks the engine that the card names.
        DataError: a picture cannot be read; names the file.
    """
    card = read_card(model)
    found: list[Prediction] = []
    with quantized_engine(card.engine), torch.no_grad(), accepted_deprecations():
        network = _load(model)
        for start in range(0, len(images), _BATCH):
            paths = images[start : start + _BATCH]
            pixels = np.stack([decode_file(path, card.input_size) for path in paths])
            logits = _logits(network, pixels, len(card.classes), model)
            best, index = logits.double().softmax(dim=1).max(dim=1)
            found += [
                Prediction(path, card.classes[k], probability)
                for path, k, probability in zip(paths, index.tolist(), best.tolist(), strict=True)
            ]
    return found


def measure(model: Path, dataset: Dataset, positions: IntArray) -> float:
    """How often an exported model is right on labelled pictures.

    Args:
        model: a ``model.pt``.
        dataset: pictures, with the classes of the model's card.
        positions: of those to look at, at least one.

    Returns:
        The accuracy in [0, 1].

    Raises:
        As ``predict``.
    """
    card = read_card(model)
    right = 0
    with quantized_engine(card.engine), torch.no_grad(), accepted_deprecations():
        network = _load(model)
        for start in range(0, len(positions), _BATCH):
            index = positions[start : start + _BATCH]
            pixels = dataset.images(index, card.input_size)
            best = _logits(network, pixels, len(card.classes), model).argmax(dim=1)
            right += int((best.numpy() == dataset.labels[index]).sum())
    return right / len(positions)


def _load(model: Path) -> torch.nn.Module:
    try:
        network: torch.nn.Module = torch.jit.load(str(model))  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError) as exc:
        raise ExportError(f"{model}: torch cannot load it ({_last_line(exc)})") from exc
    return network


def _logits(network: torch.nn.Module, pixels: ByteArray, classes: int, model: Path) -> Tensor:
    try:
        logits: Tensor = network(torch.from_numpy(pixels))
    except RuntimeError as exc:
        raise ExportError(f"{model}: does not run ({_last_line(exc)})") from exc
    if logits.shape != (len(pixels), classes):
        raise ExportError(
            f"{model}: logits are {tuple(logits.shape)}, expected {(len(pixels), classes)}"
        )
    return logits


def _last_line(exc: Exception) -> str:
    # TorchScript puts its own traceback first.
    return (str(exc).strip().splitlines() or [type(exc).__name__])[-1]
