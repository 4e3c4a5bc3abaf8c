"""The card of an exported model: all that must be known to run it and to trust it.

The same JSON lies inside ``model.pt`` and beside it as ``model.json``. The one inside counts.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from common.errors import ExportError

__all__ = ["CARD_RECORD", "Card", "SelfCheck", "read_card"]

CARD_RECORD = "archive/extra/card.json"
"""Where ``torch.jit.save(..., _extra_files={"card.json": ...})`` puts it."""

# Room for the names of 100,000 classes.
_MAX_CARD_BYTES = 8 * 1024 * 1024


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)


class SelfCheck(_Frozen):
    """How far the int8 head is from the head that was trained, on real test images.

    Attributes:
        images: how many were compared.
        accuracy: of the exported model, in [0, 1].
        argmax_agreement: share of images with the same best class.
        max_logit_difference: largest absolute difference of a logit.
        logit_spread: mean over images of largest minus smallest logit (with one class: of its
            absolute value); the yardstick.
        tolerated_disagreement: share of images that may change their class; one always may.
        tolerated_difference: what ``max_logit_difference`` may be.
    """

    images: int
    accuracy: float
    argmax_agreement: float
    max_logit_difference: float
    logit_spread: float
    tolerated_disagreement: float
    tolerated_difference: float


class Card(_Frozen):
    """What is in the file.

    Attributes:
        usage: three lines of Python that run the model with torch alone.
        engine: quantized engine to set before loading; others give other logits.
        input: type and layout of the images.
        mean: of each colour, subtracted inside the model after division by 255.
        std: of each colour, divided by inside the model.
        fingerprint: of the backbone.
        head_sha256: of the float head that was trained.
        metrics: of the run; null where not finite.
    """

    format: Literal["fedhead-model-1"] = "fedhead-model-1"
    usage: tuple[str, ...]
    engine: str
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    arch: str
    input: str
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
    self_check: SelfCheck

    def to_json(self) -> str:
        """Indented JSON in UTF-8, ends with a newline."""
        return self.model_dump_json(indent=2) + "\n"


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
