"""TorchScript files: the int8 model, and the device model for the full or the lite interpreter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.backbone._deprecations import accepted_deprecations
from common.backbone.frozen import quantized_engine
from common.errors import ExportError
from common.files import sha256_file, write_atomic
from common.seeding import batch_seed
from common.types import FloatArray
from server.card import CARD_RECORD, FileFacts, SelfCheck
from server.device_model import DeviceModel, head_logits
from server.export_check import FreshProcess, fresh_process
from server.parity import FLOAT, INT8_HEAD, compare, other_runtime
from server.phone_model import PhoneHead, PhoneModel, quantize_head
from server.targets.archive import compact, save_script
from server.targets.cards import ExportReport, draft_card, finish
from server.targets.lite import bytecode_version, lite_operators, save_lite
from server.trained import TrainedModel

__all__ = ["export_device", "export_lite", "export_model"]

# What a device file must repeat: training on so many examples, which is the first batch of
# ``run_exported``, with this lr, epochs, batch size and seed.
_EXAMPLES = 16
_TRAINING = (0.05, 3, 5, batch_seed(seed=0, round_number=1, client=0))
_MAX_DELTA_DIFFERENCE = 1e-6

Save = Callable[[torch.jit.ScriptModule], bytes]


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A network before it is a file.

    Attributes:
        kind: how ``run_exported`` loads it.
        network: to script.
        logits: float32 (n, K), what its head says to the features.
        check: how far that is from the trained head.
        is_exact: whether the file's logits must be these to the bit.
        delta: what training must give, (K, d + 1); None for a file that does not train.
    """

    kind: str
    network: torch.nn.Module
    logits: FloatArray
    check: SelfCheck
    is_exact: bool
    delta: FloatArray | None = None


def export_model(trained: TrainedModel, path: Path) -> ExportReport:
    """model.pt: backbone and int8 head, to predict with."""
    return _export(trained, path, "model", _model, save_script)


def export_device(trained: TrainedModel, path: Path) -> ExportReport:
    """device.pt: backbone and float head, to train with in the full interpreter."""
    return _export(trained, path, "device", _device("device"), save_script)


def export_lite(trained: TrainedModel, path: Path, bytecode: int | None = None) -> ExportReport:
    """device.ptl: the same for the lite interpreter.

    Args:
        trained: what to export.
        path: of the file.
        bytecode: version for an older runtime; None for this torch's own.

    Raises:
        ExportError: this torch cannot write that version, and as ``export_device``.
    """
    return _export(trained, path, "lite", _device("lite"), lambda m: save_lite(m, bytecode))


def _export(
    trained: TrainedModel,
    path: Path,
    target: str,
    build: Callable[[TrainedModel], _Candidate],
    save: Save,
) -> ExportReport:
    # Started now: it imports torch while this process works.
    with fresh_process("run_exported.py") as process:
        candidate = build(trained)
        card = draft_card(trained, target, check=candidate.check)
        with quantized_engine(card.engine), accepted_deprecations():
            scripted = torch.jit.script(candidate.network.eval())
            saved = save(scripted)
        card = card.model_copy(update=_interface(scripted, saved, target))
        data = compact(saved, {CARD_RECORD: card.to_json()})
        facts: list[FileFacts] = []

        def write(temporary: Path) -> None:
            temporary.write_bytes(data)
            facts.append(_check_file(process, temporary, trained, candidate, card.engine))

        write_atomic(path, write)
    return finish(card, path, facts[0])


def _model(trained: TrainedModel) -> _Candidate:
    backbone = trained.backbone
    head = PhoneHead(quantize_head(trained.head, backbone.affine)).eval()
    with torch.no_grad():
        logits: FloatArray = head(torch.from_numpy(np.array(trained.features))).numpy()
    check = compare(logits, trained.logits, trained.labels, INT8_HEAD)
    return _Candidate("model", PhoneModel(backbone.module, head), logits, check, is_exact=True)


def _device(kind: str) -> Callable[[TrainedModel], _Candidate]:
    def build(trained: TrainedModel) -> _Candidate:
        network = DeviceModel(trained.backbone, trained.head)
        q = torch.from_numpy(np.array(trained.features))
        logits = head_logits(q, network.gain, network.center, network.matrix).numpy()
        check = compare(logits, trained.logits, trained.labels, FLOAT)
        twin = DeviceModel(trained.backbone, trained.head)  # the one to be saved stays untrained
        count = min(_EXAMPLES, len(trained.images))
        twin.train_epochs(q[:count], torch.from_numpy(trained.labels[:count]), *_TRAINING)
        return _Candidate(
            kind, network, logits, check, is_exact=False, delta=twin.head_delta().numpy()
        )

    return build


def _interface(scripted: torch.jit.ScriptModule, saved: bytes, target: str) -> dict[str, Any]:
    """What a runtime must know of the file: methods, operators, bytecode."""
    names: list[str] = torch.jit.export_opnames(scripted)  # type: ignore[no-untyped-call]
    facts: dict[str, Any] = {"operators": tuple(sorted(names))}
    if target != "model":
        facts["methods"] = {
            name: _signature(getattr(scripted, name).schema) for name in scripted._c._method_names()
        }
    if target == "lite":
        facts["operators"] = lite_operators(saved)
        facts["bytecode_version"] = bytecode_version(saved)
    return facts


def _signature(schema: torch.FunctionSchema) -> str:
    """A method as its callers see it: "(Tensor images) -> Tensor"."""
    arguments = ", ".join(f"{a.type} {a.name}" for a in schema.arguments[1:])
    return f"({arguments}) -> {schema.returns[0].type}"


def _check_file(
    process: FreshProcess,
    file: Path,
    trained: TrainedModel,
    candidate: _Candidate,
    engine: str,
) -> FileFacts:
    """Compare what the file gives in a process of its own with what it was made from here."""
    count = len(trained.images)
    first = trained.features[: min(_EXAMPLES, count)]
    labels, logits = trained.labels[:count], candidate.logits[:count]
    job: dict[str, object] = {"model": str(file), "kind": candidate.kind, "engine": engine}
    outputs: dict[str, Any] = {"features": first, "logits": logits, "default_logits": logits}
    if candidate.delta is not None:
        job["training"] = _TRAINING
        outputs["delta"] = candidate.delta
    inputs: dict[str, Any] = {"images": trained.images, "labels": trained.labels[: len(first)]}
    there, facts = process.run(job, inputs, outputs)
    if not np.array_equal(there["features"], first):
        raise ExportError("the exported model's features differ from the training side's")
    if candidate.is_exact and there["logits"].tobytes() != logits.tobytes():
        off = float(np.abs(there["logits"] - logits).max())
        raise ExportError(f"the exported file's logits are off by up to {off:.3g}")
    compare(there["logits"], logits, labels, FLOAT)
    if candidate.delta is not None:
        off = float(np.abs(there["delta"] - candidate.delta).max())
        if not off <= _MAX_DELTA_DIFFERENCE:
            raise ExportError(f"the exported file trains to a head that is off by {off:.3g}")
    by_default = there["default_logits"]
    if facts["is_exact"]:  # else the engine's sums overflow on this processor
        compare(by_default, logits, labels, other_runtime(trained.backbone.spec.weights))
    return FileFacts(
        bytes=file.stat().st_size,
        sha256=sha256_file(file),
        runtime=f"torch {torch.__version__}",
        features_equal=True,
        default_engine=facts["engine"],
        default_engine_accuracy=float((by_default.argmax(axis=1) == labels).mean()),
    )
