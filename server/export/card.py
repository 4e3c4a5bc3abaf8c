"""The card of an exported file: all that must be known to run it and to trust it.

It lies beside each file as JSON, and inside the TorchScript ones, which can carry it. The one
inside counts; the one beside knows the file itself, too (``Card.file``).
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
    "Card",
    "DefaultEngine",
    "FileFacts",
    "SelfCheck",
    "card_path",
    "read_card",
    "read_card_beside",
]

CARD_RECORD = "archive/extra/card.json"
"""Where ``torch.jit.save(..., _extra_files={"card.json": ...})`` puts it."""

BESIDE = JsonFile("card beside an exported file", indent=2)

# Room for the names of 100,000 classes.
_MAX_CARD_BYTES = 8 * 1024 * 1024


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)


class SelfCheck(_Frozen):
    """How far the exported model is from the head that was trained, on real test images.

    Attributes:
        images: how many were compared.
        accuracy: of the exported model, in [0, 1].
        argmax_agreement: share of images with the same best class.
        max_logit_difference: largest absolute difference of a logit.
        logit_spread: mean over images of largest minus smallest logit (with one class: of its
            absolute value); the yardstick.
    """

    images: int
    accuracy: float
    argmax_agreement: float
    max_logit_difference: float
    logit_spread: float


class DefaultEngine(_Frozen):
    """What the file gives with torch's own choice of an engine: about this machine, not the file.

    Attributes:
        engine: that torch takes here if nobody sets one.
        check: beside the trained head; None where the file did not run with it.
        problem: why not, else empty.
    """

    engine: str
    check: SelfCheck | None = None
    problem: str = ""


class FileFacts(_Frozen):
    """The file as it was run in a fresh process.

    Attributes:
        bytes: its size.
        sha256: of its content.
        runtime: what ran it, with its version.
        processor: on which it ran; other kinds round otherwise, except in the card's engine.
        features_equal: whether its features were the training side's to the bit; None where it
            computes none.
        default_engine: None for files whose runtime has no choice.
    """

    bytes: int
    sha256: str
    runtime: str
    processor: str
    features_equal: bool | None = None
    default_engine: DefaultEngine | None = None


class Card(_Frozen):
    """What is in the file.

    Attributes:
        target: what was exported: model, device, lite, onnx, executorch or head.
        usage: lines of Python that run it with its runtime alone.
        usage_elsewhere: the same in C++, Kotlin and Swift.
        engine: quantized engine to set before loading; others give other logits.
        input: type and layout of the images.
        output: type and layout of what the file gives for them.
        methods: of a file that trains: each one's arguments and result, in TorchScript's types.
        bytecode_version: of the lite interpreter's bytecode; None elsewhere.
        operators: of torch that the runtime must have.
        mean: of each colour, subtracted inside the model after division by 255.
        std: of each colour, divided by inside the model.
        fingerprint: of the backbone.
        head_sha256: of the float head that was trained.
        metrics: of the run; null where not finite.
        self_check: None where nothing is computed.
        file: None in the card that lies inside the file.
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
    metrics: dict[str, float | None]
    self_check: SelfCheck | None = None
    file: FileFacts | None = None

    def to_json(self) -> str:
        """Indented JSON in UTF-8, ends with a newline."""
        return self.model_dump_json(indent=2) + "\n"


def card_path(path: Path) -> Path:
    """Where the card beside a file lies: model.json beside model.pt, else NAME.json."""
    return (
        path.with_suffix(".json") if path.suffix == ".pt" else path.with_name(f"{path.name}.json")
    )


@own_check("card inside an exported file")
def read_card(path: Path) -> Card:
    """The card inside a model file, without running any of it.

    Reads the whole file against its checksums, which torch's own reader does not do.

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
    # What zipfile lets through when headers lie: RuntimeError is "encrypted".
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
    """The card of a file that cannot carry one, such as model.onnx.

    Args:
        path: of the file.
        sha256: of its content, hex.

    Raises:
        ExportError: there is no card beside the file, or it is that of another file.
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
