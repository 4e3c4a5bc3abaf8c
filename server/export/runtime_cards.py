"""The card and the report of one export: the part that is the same for all targets."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from common.backbone.spec import BackboneSpec
from server.export.card import BESIDE, Card, DefaultEngine, FileFacts, SelfCheck, card_path
from server.export.trained import TrainedModel
from server.export.usage import PREDICT_ONLY, elsewhere, python

__all__ = ["ExportReport", "draft_card", "finish"]


@dataclass(frozen=True)
class ExportReport:
    """A written file, and its difference from the trained head.

    Attributes:
        target: the export target.
        path: the file.
        model_bytes: the file's size.
        sha256: the file's SHA-256.
        argmax_agreement: share of images with the same best class, in [0, 1]. This and the
            following are None if the file does not compute them.
        max_logit_difference: largest absolute difference of a logit.
        accuracy: the exported model's accuracy on the images, in [0, 1].
        images: number of images.
        features_equal: whether its features are bit for bit those of the training.
        default_engine: results with the engine that torch picks on this machine.
        weights: label of the backbone's pretrained weights.
    """

    target: str
    path: Path
    model_bytes: int
    sha256: str
    argmax_agreement: float | None = None
    max_logit_difference: float | None = None
    accuracy: float | None = None
    images: int | None = None
    features_equal: bool | None = None
    default_engine: DefaultEngine | None = None
    weights: str = ""

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        default = self.default_engine and self.default_engine.model_dump()
        return {**asdict(self), "path": str(self.path), "default_engine": default}


def draft_card(
    trained: TrainedModel,
    target: str,
    *,
    check: SelfCheck | None = None,
    engine: str = "",
) -> Card:
    """A card without the facts about the finished file.

    Args:
        trained: the exported model.
        target: see ``Card``.
        check: the check of its logits.
        engine: the engine that computes; by default the backbone's quantized engine.
    """
    spec = trained.backbone.spec
    images, logits = _interface(target, spec, trained)
    return Card(
        target=target,
        usage=python(target, spec),
        usage_elsewhere=elsewhere(target, spec),
        engine=engine or spec.engine,
        classes=trained.classes,
        arch=spec.arch,
        input=images,
        output=logits,
        input_size=spec.input_size,
        mean=spec.mean,
        std=spec.std,
        num_features=spec.num_features,
        weights=spec.weights,
        weights_licence=spec.weights_licence,
        fingerprint=trained.backbone.fingerprint,
        head_sha256=trained.head_sha256,
        torch_version=torch.__version__,
        temperature=trained.temperature,
        calibration=trained.calibration,
        metrics=dict(trained.metrics),
        privacy=trained.privacy,
        self_check=check,
    )


def _interface(target: str, spec: BackboneSpec, trained: TrainedModel) -> tuple[str, str]:
    """Descriptions of the file's input and output."""
    head = trained.head
    if target == "head":
        return (
            f"no images: weight float32 ({head.num_classes}, {head.num_features}) and bias "
            f"float32 ({head.num_classes},), for set_head of device.pt and device.ptl",
            "nothing by itself",
        )
    # ExecuTorch plans its memory when the file is made, for one image per call.
    n = "1" if target in ("executorch", "device-pte") else "n"
    rows = "n" if target == "device-pte" else n
    return (
        f"uint8 ({n}, 3, {spec.input_size}, {spec.input_size}), RGB in 0..255; "
        "the model normalizes. Of an image: upright by its EXIF orientation, alpha laid on white, "
        f"the high byte of 16 bits, the shorter side scaled to {spec.input_size} (bilinear, "
        "antialiased), the middle of the longer kept",
        f"float32 ({rows}, {head.num_classes}) logits{_divided(target, trained)}",
    )


def _divided(target: str, trained: TrainedModel) -> str:
    """What to do with the logits to get probabilities."""
    if trained.calibration is None:
        return ""
    if target in PREDICT_ONLY:
        return ", divided by the temperature; softmax gives probabilities"
    return "; divided by the temperature, softmax gives probabilities"


def finish(card: Card, path: Path, facts: FileFacts) -> ExportReport:
    """Write the card beside a finished file."""
    whole = card.model_copy(update={"file": facts})
    BESIDE.write(card_path(path), json.loads(whole.to_json()))  # which has null for NaN
    report = ExportReport(
        target=card.target,
        path=path,
        model_bytes=facts.bytes,
        sha256=facts.sha256,
        features_equal=facts.features_equal,
        default_engine=facts.default_engine,
        weights=card.weights,
    )
    if card.self_check is None:
        return report
    return replace(
        report,
        argmax_agreement=card.self_check.argmax_agreement,
        max_logit_difference=card.self_check.max_logit_difference,
        accuracy=card.self_check.accuracy,
        images=card.self_check.images,
    )
