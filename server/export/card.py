"""The card of an exported file: everything that one must know to run and trust it.

It is a JSON file beside each exported file. TorchScript files also hold it inside, and that card is
the one that counts. Only the card beside the file has facts about the file (``Card.file``).
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from common.errors import ExportError
from common.readback import JsonFile, own_check

__all__ = [
    "BESIDE",
    "CARD_RECORD",
    "Calibration",
    "Card",
    "DefaultEngine",
    "FileFacts",
    "SelfCheck",
    "card_path",
    "read_card",
    "read_card_beside",
]

CARD_RECORD = "archive/extra/card.json"
"""The place where ``torch.jit.save(..., _extra_files={"card.json": ...})`` puts it."""

BESIDE = JsonFile("card beside an exported file", indent=2)

# Room for the names of 100,000 classes.
_MAX_CARD_BYTES = 8 * 1024 * 1024


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)


class SelfCheck(_Frozen):
    """The exported model's difference from the trained head, on real test images.

    Attributes:
        images: number of compared images.
        accuracy: the exported model's accuracy, in [0, 1].
        argmax_agreement: share of images with the same best class.
        max_logit_difference: largest absolute difference of a logit.
        logit_spread: mean over images of largest minus smallest logit (with one class: of its
            absolute value), for comparison with the difference.
    """

    images: int
    accuracy: float
    argmax_agreement: float
    max_logit_difference: float
    logit_spread: float


class Calibration(_Frozen):
    """What dividing the logits by a temperature gives, on the server's test set.

    Attributes:
        temperature: T, see common.temperature.
        fitted_on: words for what T was fitted on.
        fitted_examples: number of these examples; 0 if T was not fitted on examples.
        ece: expected calibration error of the probabilities, in [0, 1].
        ece_before: the same without the temperature.
        loss: mean cross-entropy.
        loss_before: the same without the temperature.
        examples: number of test examples.
    """

    temperature: float
    fitted_on: str
    fitted_examples: int
    ece: float
    ece_before: float
    loss: float
    loss_before: float
    examples: int


class DefaultEngine(_Frozen):
    """Results with the engine that torch picks by itself: facts about this machine, not the file.

    Attributes:
        engine: the engine that torch picks here if none is set.
        check: difference from the trained head; None if the file did not run with it.
        problem: why it did not run; otherwise empty.
    """

    engine: str
    check: SelfCheck | None = None
    problem: str = ""


class FileFacts(_Frozen):
    """Facts about the file, from a run in a fresh process.

    Attributes:
        bytes: the file's size.
        sha256: SHA-256 of its content.
        runtime: the runtime that ran it, with its version.
        processor: the processor that ran it.
        features_equal: whether its features were bit for bit those of the training; None if it
            gives none.
        within_rounding: of a file for another runtime that gives logits alone: whether these
            differ from the head's by no more than sums of floats in another order explain.
        default_engine: None for files whose runtime has only one engine.
    """

    bytes: int
    sha256: str
    runtime: str
    processor: str
    features_equal: bool | None = None
    within_rounding: bool | None = None
    default_engine: DefaultEngine | None = None


class Card(_Frozen):
    """The description of an exported file.

    Attributes:
        target: the export target: model, device, lite, onnx, executorch, device-pte or head.
        usage: lines of Python that run it with only its runtime.
        usage_elsewhere: the same in C++, Kotlin and Swift.
        engine: quantized engine to set before loading; others give other logits.
        input: type and layout of the images.
        output: type and layout of the file's result.
        methods: arguments and result of each method of a file that trains, in TorchScript's types.
        bytecode_version: version of the lite interpreter's bytecode; None for other targets.
        operators: torch operators that the runtime must have.
        mean: mean of each colour, subtracted inside the model after division by 255.
        std: standard deviation of each colour; the model divides by it.
        fingerprint: the backbone's fingerprint.
        head_sha256: SHA-256 of the trained float head.
        temperature: T, by which the logits of files that only predict are divided already. Those of
            device files are not, because they train on: divide them, then softmax gives
            probabilities.
        calibration: how good these probabilities are; None if it is not known.
        metrics: the run's metrics, of undivided logits; null if not finite.
        privacy: what the training guarantees its clients, in words.
        self_check: None if the file computes nothing.
        file: None in the card inside the file.
    """

    format: Literal["fedhead-model-2"] = "fedhead-model-2"
    target: str
    usage: tuple[str, ...]
    usage_elsewhere: dict[str, tuple[str, ...]]
    engine: str
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    arch: str
    input: str
    output: str
    methods: dict[str, str] = {}
    bytecode_version: int | None = None
    operators: tuple[str, ...] = ()
    input_size: Annotated[int, Field(ge=1, le=4096)]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    num_features: int
    weights: str
    weights_licence: str
    fingerprint: str
    head_sha256: str
    torch_version: str
    temperature: float = 1.0
    calibration: Calibration | None = None
    metrics: dict[str, float | None]
    privacy: str = ""
    self_check: SelfCheck | None = None
    file: FileFacts | None = None

    def to_json(self) -> str:
        """Indented JSON in UTF-8, ends with a newline."""
        return self.model_dump_json(indent=2) + "\n"


def card_path(path: Path) -> Path:
    """The path of the card beside a file: model.json beside model.pt, otherwise NAME.json."""
    return (
        path.with_suffix(".json") if path.suffix == ".pt" else path.with_name(f"{path.name}.json")
    )


@own_check("card inside an exported file")
def read_card(path: Path) -> Card:
    """The card inside a model file, read without running any of its code.

    It checks the whole file against its checksums, which torch's reader does not do.

    Raises:
        ExportError: the file cannot be read, is damaged, or was not exported by fedhead.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if (bad := archive.testzip()) is not None:
                raise ExportError(f"{path}: damaged model file (checksum of {bad})")
            if archive.getinfo(CARD_RECORD).file_size > _MAX_CARD_BYTES:
                raise ExportError(f"{path}: its card is larger than {_MAX_CARD_BYTES:,} bytes")
            text = archive.read(CARD_RECORD)
    except KeyError as exc:
        raise ExportError(f"{path}: not a model exported by fedhead (no card inside)") from exc
    except zipfile.BadZipFile as exc:
        raise ExportError(f"{path}: not a model file, or cut off ({exc})") from exc
    # zipfile raises these on false headers; RuntimeError means "encrypted".
    except (EOFError, NotImplementedError, RuntimeError, ValueError, struct.error, zlib.error) as e:
        raise ExportError(f"{path}: damaged model file ({e})") from e
    except OSError as exc:
        raise ExportError(f"{path}: cannot be read ({exc.strerror or exc})") from exc
    try:
        return Card.model_validate_json(text)
    except ValueError as exc:
        problem = str(exc).splitlines()[0]
        raise ExportError(f"{path}: not a model exported by fedhead (card: {problem})") from exc


def read_card_beside(path: Path, sha256: str) -> Card:
    """The card of a file that cannot hold one, such as model.onnx.

    Args:
        path: the file.
        sha256: hex SHA-256 of its content.

    Raises:
        ExportError: there is no card beside the file, or the card is of another file.
    """
    beside = card_path(path)
    try:
        card = Card.model_validate(BESIDE.read(beside), strict=False)
    except FileNotFoundError as exc:
        raise ExportError(f"{path} has no card, expected {beside}") from exc
    except ValueError as exc:
        raise ExportError(f"{beside}: not a card ({str(exc).splitlines()[0]})") from exc
    if card.file is None or card.file.sha256 != sha256:
        raise ExportError(f"{beside} is the card of another file than {path}")
    return card
