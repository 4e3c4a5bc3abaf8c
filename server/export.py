"""One file for the phone: ``model.pt``, TorchScript, with the int8 backbone and the int8 head."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from common.backbone._deprecations import accepted_deprecations
from common.backbone.frozen import FrozenBackbone, quantized_engine
from common.errors import ExportError
from common.files import write_atomic
from common.images import ByteArray
from common.types import FloatArray, Head, IntArray
from server.card import CARD_RECORD, Card, SelfCheck
from server.export_check import fresh_process
from server.phone_model import PhoneHead, PhoneModel, quantize_head

__all__ = ["ExportReport", "export_model"]

# Bounds memory; features do not depend on it.
_BATCH = 64
# Then int8 moves the accuracy by at most half a point.
_TOLERATED_DISAGREEMENT = 0.005
# Of the logits' spread; measured on real heads: 0.2% to 1.2%.
_TOLERATED_DIFFERENCE = 0.05
# Of the largest logit: what the trained head's own float32 sum may be off.
_FLOAT32_ROUNDING = 1e-5


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how far it is from the head that was trained.

    Attributes:
        path: of ``model.pt``.
        model_bytes: its size.
        sha256: of the file.
        argmax_agreement: share of images with the same best class, in [0, 1].
        max_logit_difference: largest absolute difference of a logit.
        accuracy: of the exported model on the images, in [0, 1].
    """

    path: Path
    model_bytes: int
    sha256: str
    argmax_agreement: float
    max_logit_difference: float
    accuracy: float


def export_model(
    backbone: FrozenBackbone,
    head: Head,
    *,
    classes: Sequence[str],
    metrics: Mapping[str, float],
    images: ByteArray,
    labels: IntArray,
    path: Path,
    features: ByteArray | None = None,
) -> ExportReport:
    """Write ``model.pt`` and, beside it, its card ``model.json``.

    Eight parameters: each is another room's result, and a bundle would only rename them.

    Args:
        backbone: as the head was trained on.
        head: float, for x as ``backbone.affine`` makes it.
        classes: K names, in the order of the head's rows.
        metrics: of the run, for the card.
        images: uint8 (m, 3, H, W), real test images to run the file on.
        labels: int64 (n,), n >= m, the first m of them of the images.
        path: of the model file; one that exists is replaced. The card takes the suffix .json.
        features: uint8 (n, d), of the images and of more of the test set where they are known
            already: the head is measured on all, the file is run on the images.

    Raises:
        ExportError: arguments that do not fit each other, a model that does not agree with
            the head within the tolerance, or a file that does not give the same when it is
            loaded in a fresh process. Then nothing is left of it.
        OSError: as the operating system says (disk full, no permission); no half file is left.
    """
    if path.suffix == ".json":
        raise ExportError(f"{path}: the card beside the model takes the suffix .json")
    _check_arguments(backbone, head, classes, images, labels, features)
    # Started now: it imports torch while this process computes features.
    with fresh_process(images) as check_file:
        if features is None:
            parts = range(0, len(images), _BATCH)
            features = np.concatenate([backbone.features(images[i : i + _BATCH]) for i in parts])
        phone_head = PhoneHead(quantize_head(head, backbone.affine)).eval()
        with torch.no_grad():
            logits: FloatArray = phone_head(torch.from_numpy(np.array(features))).numpy()
        trained = backbone.affine(features) @ head.weight.T + head.bias
        check = _compare(logits, trained, labels)
        card = _card(backbone, head, classes, metrics, check)
        data = _archive(PhoneModel(backbone.module, phone_head).eval(), card)

        def write(temporary: Path) -> None:
            temporary.write_bytes(data)
            check_file(temporary, features[: len(images)], logits[: len(images)])

        write_atomic(path, write)
    write_atomic(path.with_suffix(".json"), card.to_json().encode())
    return ExportReport(
        path=path,
        model_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        argmax_agreement=check.argmax_agreement,
        max_logit_difference=check.max_logit_difference,
        accuracy=check.accuracy,
    )


def _check_arguments(
    backbone: FrozenBackbone,
    head: Head,
    classes: Sequence[str],
    images: ByteArray,
    labels: IntArray,
    features: ByteArray | None,
) -> None:
    size = backbone.spec.input_size
    if head.num_features != backbone.spec.num_features:
        raise ExportError(
            f"the head has {head.num_features} features, "
            f"but the backbone has {backbone.spec.num_features}"
        )
    if len(classes) != head.num_classes:
        raise ExportError(f"the head has {head.num_classes} classes, but {len(classes)} names")
    if not (np.isfinite(head.weight).all() and np.isfinite(head.bias).all()):
        raise ExportError("the head is not finite")
    if images.dtype != np.uint8 or images.shape[1:] != (3, size, size):
        raise ExportError(
            f"images are {images.dtype} {images.shape}, expected uint8 (n, 3, {size}, {size})"
        )
    known = len(images) if features is None else len(features)
    if len(images) == 0 or labels.shape != (known,) or known < len(images):
        raise ExportError(
            f"{len(images)} images to check the model on, {known} features, {labels.size} labels"
        )
    shape = (known, head.num_features)
    if features is not None and (features.dtype != np.uint8 or features.shape != shape):
        raise ExportError(f"features are {features.dtype} {features.shape}, expected uint8 {shape}")


def _compare(logits: FloatArray, trained: FloatArray, labels: IntArray) -> SelfCheck:
    """Measure the int8 head against the trained one and refuse what is beyond the tolerance."""
    size = np.abs(trained).max(axis=1) if trained.shape[1] == 1 else np.ptp(trained, axis=1)
    spread = float(size.mean())
    rounding = _FLOAT32_ROUNDING * float(np.abs(trained).max())
    difference = float(np.abs(logits - trained).max())
    best = logits.argmax(axis=1)
    # A tie in float32 is nobody's class.
    lost = trained.max(axis=1) - np.take_along_axis(trained, best[:, None], axis=1)[:, 0]
    changed = int((lost > rounding).sum())
    check = SelfCheck(
        images=len(labels),
        accuracy=float((best == labels).mean()),
        argmax_agreement=1 - changed / len(labels),
        max_logit_difference=difference,
        logit_spread=spread,
        tolerated_disagreement=_TOLERATED_DISAGREEMENT,
        tolerated_difference=max(_TOLERATED_DIFFERENCE * spread, rounding),
    )
    # "not <=" also catches NaN.
    if not difference <= check.tolerated_difference:
        raise ExportError(
            f"the int8 model's logits are off by up to {difference:.3g}, "
            f"tolerated are {check.tolerated_difference:.3g}"
        )
    # Of few images one may be nearly a tie.
    if changed > max(1, _TOLERATED_DISAGREEMENT * len(labels)):
        raise ExportError(
            f"the int8 model changes the class of {changed} of {len(labels)} images, "
            f"tolerated are {_TOLERATED_DISAGREEMENT:.1%}"
        )
    return check


def _card(
    backbone: FrozenBackbone,
    head: Head,
    classes: Sequence[str],
    metrics: Mapping[str, float],
    check: SelfCheck,
) -> Card:
    spec = backbone.spec
    shape = f"uint8 (n, 3, {spec.input_size}, {spec.input_size})"
    return Card(
        usage=(
            f'import torch; torch.backends.quantized.engine = "{spec.engine}"  # before loading',
            'model = torch.jit.load("model.pt")',
            f"probabilities = model(images).softmax(1)  # images: {shape}, RGB",
        ),
        engine=spec.engine,
        classes=tuple(classes),
        arch=spec.arch,
        input=f"{shape}, RGB in 0..255; the model normalizes",
        input_size=spec.input_size,
        mean=spec.mean,
        std=spec.std,
        num_features=spec.num_features,
        weights=spec.weights,
        weights_licence=spec.weights_licence,
        fingerprint=backbone.fingerprint,
        head_sha256=head.sha256,
        torch_version=torch.__version__,
        metrics=dict(metrics),
        self_check=check,
    )


def _archive(model: PhoneModel, card: Card) -> bytes:
    """The file's bytes: the same for the same model and card.

    TorchScript's own archive holds the paths and lines of the Python source (``debug_pkl``,
    for tracebacks) and an identifier over everything, which would differ from one
    installation to the next. Both are left out; no loader needs them.
    """
    buffer = io.BytesIO()
    with quantized_engine(card.engine), accepted_deprecations():
        torch.jit.save(torch.jit.script(model), buffer)
    target = io.BytesIO()
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(target, "w") as archive:
        for record in source.infolist():
            if not record.filename.endswith((".debug_pkl", "/.data/serialization_id")):
                archive.writestr(zipfile.ZipInfo(record.filename), source.read(record))
        archive.writestr(zipfile.ZipInfo(CARD_RECORD), card.to_json())
    return target.getvalue()
