"""device.pte: one ExecuTorch file with which a phone computes features, trains and counts.

Its methods, for those who call them, are in ``pte_methods``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.backbone.frozen import FrozenBackbone, probe_images
from common.errors import ExportError
from common.files import sha256_file, write_atomic
from common.images import ByteArray
from common.machine import processor
from common.seeding import batch_seed
from common.statistics import EXACT_ROWS, Statistics, feature_statistics
from common.types import FeatureSet, FloatArray, Head, IntArray
from server.export.card import FileFacts, SelfCheck
from server.export.device_arrays import trainer_view, visiting_orders
from server.export.device_model import DeviceModel
from server.export.fresh_process import FreshProcess, fresh_process
from server.export.other_runtime import check_installed
from server.export.parity import check_delta, check_within, measure, rounding
from server.export.runtime_cards import ExportReport, draft_card, finish
from server.export.targets.executorch import Call, written
from server.export.targets.pte_methods import (
    ABILITIES,
    METHODS,
    Clipped,
    Constants,
    Features,
    Gram,
    Predict,
    Step,
)
from server.export.trained import TrainedModel

__all__ = ["device_pte_file", "export_device_pte"]

# The training that a file must reproduce: examples, epochs and batch size.
_EXAMPLES, _EPOCHS, _BATCH = 16, 3, 5
_SEED = batch_seed(seed=0, round_number=1, client=0)


def export_device_pte(trained: TrainedModel, path: Path) -> ExportReport:
    """Write the file.

    Raises:
        ExportError: it computes other features than the training side, as with networks that need
            more than convolutions and sums, and with backbones of earlier versions; or it trains
            or counts otherwise.
        MissingExtraError: executorch is not installed.
    """
    check_installed("device-pte")
    _check_backbone(trained)
    # Started early, so that it imports the runtime while this process works.
    with fresh_process("run_device_pte.py") as process:
        data = device_pte_file(trained.backbone, trained.classes, trained.head)
        checks: list[SelfCheck] = []
        facts: list[FileFacts] = []

        def write(temporary: Path) -> None:
            temporary.write_bytes(data)
            logits, runtime = _check_file(process, temporary, trained)
            count = len(logits)
            checks.append(measure(logits, trained.logits[:count], trained.labels[:count]))
            facts.append(
                FileFacts(
                    bytes=len(data),
                    sha256=sha256_file(temporary),
                    runtime=runtime,
                    processor=processor(),
                    features_equal=True,
                )
            )

        write_atomic(path, write)
    card = draft_card(trained, "device-pte", check=checks[0], engine=facts[0].runtime)
    return finish(card.model_copy(update={"methods": METHODS}), path, facts[0])


def device_pte_file(backbone: FrozenBackbone, classes: tuple[str, ...], head: Head) -> bytes:
    """The file of a backbone, for heads of these classes.

    Args:
        backbone: frozen, for the quantized engine qnnpack.
        classes: their K names, without line breaks.
        head: the run's.
    """
    size, d, k = backbone.spec.input_size, backbone.spec.num_features, len(classes)
    image = torch.from_numpy(probe_images(size)[:1].copy())
    expected = torch.from_numpy(backbone.features(image))
    # Each tensor is one of its own: of one that is passed twice, torch.export makes one input.
    heads = [torch.full((k, d + 1), 0.01 * i) for i in range(4)]
    step = (*_batch(d, k), *heads, torch.tensor([0.1, 0.9, 1e-4, 0.01, 0.0]))
    clip = torch.ones(1, dtype=torch.float64)
    rows = {0: torch.export.Dim("n", min=1, max=EXACT_ROWS)}
    fixed = (None,) * 5
    calls: dict[str, Call] = {
        "features": (Features(backbone), (image,), (None,)),
        "train_step": (Step(backbone), step, (rows, rows, *fixed)),
        "train_step_preconditioned": (
            Step(backbone),
            (*step, torch.eye(d + 1)),
            (rows, rows, *fixed, None),
        ),
        "gram": (Gram(k), _batch(d, k), (rows, rows)),
        "predict": (Predict(backbone), (_batch(d, k)[0], torch.ones(k, d + 1)), (rows, None)),
        "clipped": (Clipped(), (torch.ones(k, d + 1), clip), (None, None)),
        "head": (Constants(torch.from_numpy(head.matrix)), (), ()),
        "probe": (Constants(image, expected), (), ()),
    }
    constants: dict[str, str | int] = {
        "fingerprint": backbone.fingerprint,
        "classes": "\n".join(classes),
        "abilities": " ".join(ABILITIES),
        "input_size": size,
        "num_features": d,
        "num_classes": k,
        "most_rows": EXACT_ROWS,
    }
    return written(calls, constants)


def _batch(d: int, k: int) -> tuple[Tensor, Tensor]:
    """Features and labels to export with; their number stands for any other."""
    n = 7
    features = torch.arange(n * d).remainder(256).to(torch.uint8).reshape(n, d)
    return features, torch.arange(n).remainder(k)


def _check_backbone(trained: TrainedModel) -> None:
    engine = trained.backbone.spec.engine
    if engine != "qnnpack":
        raise ExportError(
            f"the backbone is for the quantized engine {engine}, and a phone computes with qnnpack"
        )
    for name in trained.classes:
        if len(name.splitlines()) != 1:
            raise ExportError(f"class {name!r}: its name must be one line of text in device.pte")


def _check_file(process: FreshProcess, file: Path, trained: TrainedModel) -> tuple[FloatArray, str]:
    """Compare the file's results in a process of its own; its logits, and the runtime's name."""
    count = len(trained.images)
    examples = min(_EXAMPLES, count)
    q, labels = trained.features[:examples], trained.labels[:examples]
    x = trained.backbone.affine(q)
    lr = 1 / float(np.square(x).sum(axis=1).max() + 1)
    order = visiting_orders(len(q), _SEED, _EPOCHS, _BATCH).numpy()
    delta, statistics = _expected(trained, q, labels, lr)
    there, found = process.run(
        {"model": str(file), "lr": lr, "batch": _BATCH},
        {"images": trained.images, "labels": labels, "order": order},
        {
            "features": trained.features[:count],
            "logits": trained.logits[:count],
            "delta": delta,
            "gram": statistics.gram.astype(np.int64),
            "moments": statistics.moments.astype(np.int64),
        },
    )
    wrong = (there["features"] != trained.features[:count]).any(axis=1).sum()
    if wrong or not found["probe"]:
        raise ExportError(
            f"ExecuTorch computes other features than the training side for {wrong} of {count} "
            f"images ({trained.backbone}): a backbone of an earlier version, or layers that it "
            "rounds otherwise; device.pt has the training side's"
        )
    for name in ("gram", "moments"):
        if not np.array_equal(there[name], getattr(statistics, name)):
            raise ExportError(f"the exported file's {name} differs from the training side's")
    affine = trained.backbone.affine
    gain, center = torch.from_numpy(affine.gain), torch.from_numpy(affine.center)
    x = trainer_view(torch.from_numpy(there["features"]), gain, center).numpy()
    bound = rounding(x, trained.head.matrix)
    check_within(there["logits"], trained.logits[:count], bound, "the exported file")
    check_delta(there["delta"], delta)
    return there["logits"], str(found["runtime"])


def _expected(
    trained: TrainedModel, q: ByteArray, labels: IntArray, lr: float
) -> tuple[FloatArray, Statistics]:
    """What the file's training from a head of zeros, and its sums, must be."""
    zeros = Head.zeros(trained.head.num_classes, trained.head.num_features)
    twin = DeviceModel(trained.backbone, zeros)
    features, classes = torch.from_numpy(q.copy()), torch.from_numpy(labels.copy())
    twin.train_epochs(features, classes, lr, _EPOCHS, _BATCH, _SEED)
    examples = FeatureSet(q, labels, trained.backbone.affine, trained.backbone.fingerprint)
    return twin.head_delta().numpy(), feature_statistics(examples, trained.head.num_classes)
