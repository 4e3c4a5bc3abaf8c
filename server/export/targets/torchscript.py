"""TorchScript files: the int8 model, and the device model for the full and lite interpreters."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.apart import in_fresh_process, is_reused
from common.backbone._deprecations import accepted_deprecations
from common.backbone.frozen import FrozenBackbone, quantized_engine
from common.errors import ExportError
from common.files import sha256_file, write_atomic
from common.machine import processor
from common.seeding import batch_seed
from common.types import FloatArray, Head
from server.export.archive import NUMBERED, compact, save_script
from server.export.card import CARD_RECORD, DefaultEngine, FileFacts, SelfCheck, card_path
from server.export.device_arrays import head_logits, trainer_view
from server.export.device_model import DeviceModel
from server.export.fresh_process import FreshProcess, fresh_process
from server.export.parity import check_delta, check_within, measure, rounding, tell
from server.export.phone_model import PhoneHead, PhoneModel, quantize_head
from server.export.runtime_cards import ExportReport, draft_card, finish
from server.export.targets.lite import bytecode_version, lite_operators, save_lite
from server.export.trained import TrainedModel

__all__ = ["export_device", "export_lite", "export_model"]

# The training that a device file must reproduce: number of examples (the first batch of
# ``run_exported``), epochs, batch size and seed.
_EXAMPLES = 16
_TRAINING = (3, 5, batch_seed(seed=0, round_number=1, client=0))

logger = logging.getLogger("fedhead")


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A network to be written to a file.

    Attributes:
        kind: the loader that ``run_exported`` uses.
        network: the network to script.
        logits: float32 (n, K), the logits of its head for the features.
        check: their difference from the trained head's.
        bound: (n, K), largest allowed difference of the file's logits from ``logits``.
        training: the training that it must reproduce; None: the file does not train.
    """

    kind: str
    network: torch.nn.Module
    logits: FloatArray
    check: SelfCheck
    bound: FloatArray
    training: _Training | None = None


@dataclass(frozen=True, eq=False)
class _Training:
    """Training steps from a head of zeros, too small to magnify rounding errors.

    With a learning rate of at most ``1 / max |x|^2``, a step of gradient descent on softmax
    regression never increases the distance between two heads.

    Attributes:
        lr: learning rate.
        delta: float32 (K, d + 1), the change that the steps give.
    """

    lr: float
    delta: FloatArray


def export_model(trained: TrainedModel, path: Path) -> ExportReport:
    """model.pt: backbone and int8 head, for prediction."""
    return _export(trained, path, "model", _model)


def export_device(trained: TrainedModel, path: Path) -> ExportReport:
    """device.pt: backbone and float head, for training in the full interpreter."""
    return _export(trained, path, "device", _device("device"))


def export_lite(trained: TrainedModel, path: Path, bytecode: int | None = None) -> ExportReport:
    """device.ptl: the same for the lite interpreter.

    Args:
        trained: what to export.
        path: the file to write.
        bytecode: bytecode version for an older runtime; None: this torch's version.

    Raises:
        ExportError: this torch cannot write that version; and as in ``export_device``.
    """
    return _export(trained, path, "lite", _device("lite"), bytecode)


def _export(
    trained: TrainedModel,
    path: Path,
    target: str,
    build: Callable[[TrainedModel], _Candidate],
    bytecode: int | None = None,
) -> ExportReport:
    # Started early, so that it imports torch while this process works.
    with fresh_process("run_exported.py") as process:
        candidate = build(trained)
        card = draft_card(trained, target, check=candidate.check)
        saved, interface = _saved(candidate.network, target, card.engine, bytecode)
        name = interface.pop("class")
        if is_reused() and NUMBERED in name:
            payload = trained.backbone.to_bytes()
            saved, interface = in_fresh_process(
                _saved_there, payload, trained.head, target, bytecode
            )
            del interface["class"]
        card = card.model_copy(update=interface)
        data = compact(saved, {CARD_RECORD: card.to_json()})
        facts: list[FileFacts] = []

        def write(temporary: Path) -> None:
            temporary.write_bytes(data)
            facts.append(_check_file(process, temporary, trained, candidate, card.engine))

        write_atomic(path, write)
    _tell_by_default(path.name, card.engine, facts[0].default_engine)
    return finish(card, path, facts[0])


def _network(backbone: FrozenBackbone, head: Head, target: str) -> torch.nn.Module:
    """What is compiled for a target."""
    if target != "model":
        return DeviceModel(backbone, head)
    return PhoneModel(backbone.module, PhoneHead(quantize_head(head, backbone.affine)).eval())


def _saved(
    network: torch.nn.Module, target: str, engine: str, bytecode: int | None
) -> tuple[bytes, dict[str, Any]]:
    """The compiled network's bytes, its interface, and as "class" what torch has called it."""
    with quantized_engine(engine), accepted_deprecations():
        scripted = torch.jit.script(network.eval())
        saved = save_lite(scripted, bytecode) if target == "lite" else save_script(scripted)
    name = scripted._c._type().qualified_name()
    return saved, {**_interface(scripted, saved, target), "class": name}


def _saved_there(
    payload: bytes, head: Head, target: str, bytecode: int | None
) -> tuple[bytes, dict[str, Any]]:
    """The same in a process that has compiled nothing yet: the bytes that any such one gives."""
    backbone = FrozenBackbone.from_bytes(payload)
    return _saved(_network(backbone, head, target), target, backbone.spec.engine, bytecode)


def _model(trained: TrainedModel) -> _Candidate:
    backbone = trained.backbone
    int8 = quantize_head(trained.head, backbone.affine)
    head = PhoneHead(int8).eval()
    with torch.no_grad():
        logits: FloatArray = head(torch.from_numpy(np.array(trained.features))).numpy()
    x = backbone.affine(trained.features)
    bound = int8.error_bound(trained.features, backbone.affine.center)
    bound += rounding(x, trained.head.weight) + np.spacing(np.abs(logits))
    check_within(logits, trained.logits, bound, "the int8 head")
    check = measure(logits, trained.trained_logits, trained.labels)
    tell(check, "the int8 head", "its classes are nearly tied")
    exact = np.zeros_like(logits)  # sums of integers are the same in any order
    return _Candidate("model", PhoneModel(backbone.module, head), logits, check, exact)


def _device(kind: str) -> Callable[[TrainedModel], _Candidate]:
    def build(trained: TrainedModel) -> _Candidate:
        network = DeviceModel(trained.backbone, trained.head)
        q = torch.from_numpy(np.array(trained.features))
        logits = head_logits(q, network.gain, network.center, network.matrix).numpy()
        x = trainer_view(q, network.gain, network.center).numpy()
        bound = rounding(x, trained.head.matrix)
        check_within(logits, trained.logits, bound, "the device model")
        check = measure(logits, trained.logits, trained.labels)
        count = min(_EXAMPLES, len(trained.images))
        lr = 1 / float(np.square(x[:count]).sum(axis=1).max())
        zeros = Head.zeros(trained.head.num_classes, trained.head.num_features)
        twin = DeviceModel(trained.backbone, zeros)  # a copy, so that the saved one stays untrained
        twin.train_epochs(q[:count], torch.from_numpy(trained.labels[:count]), lr, *_TRAINING)
        training = _Training(lr, twin.head_delta().numpy())
        return _Candidate(kind, network, logits, check, bound, training)

    return build


def _interface(scripted: torch.jit.ScriptModule, saved: bytes, target: str) -> dict[str, Any]:
    """The facts that a runtime needs about the file: methods, operators, bytecode."""
    names: list[str] = torch.jit.export_opnames(scripted)  # type: ignore[no-untyped-call]
    facts: dict[str, Any] = {"operators": tuple(sorted(names))}
    if target != "model":
        facts["methods"] = {
            name: _signature(getattr(scripted, name).schema)
            for name in scripted._c._method_names()
            if not name.startswith("_")
        }
    if target == "lite":
        facts["operators"] = lite_operators(saved)
        facts["bytecode_version"] = bytecode_version(saved)
    return facts


def _signature(schema: torch.FunctionSchema) -> str:
    """A method's signature: "(Tensor images) -> Tensor"."""
    arguments = ", ".join(f"{a.type} {a.name}" for a in schema.arguments[1:])
    return f"({arguments}) -> {schema.returns[0].type}"


def _check_file(
    process: FreshProcess,
    file: Path,
    trained: TrainedModel,
    candidate: _Candidate,
    engine: str,
) -> FileFacts:
    """Compare the file's results in a process of its own with those computed here."""
    count = len(trained.images)
    first = trained.features[: min(_EXAMPLES, count)]
    logits = candidate.logits[:count]
    job: dict[str, object] = {"model": str(file), "kind": candidate.kind, "engine": engine}
    outputs: dict[str, Any] = {"features": first, "logits": logits, "default_logits": logits}
    if candidate.training is not None:
        job["training"] = (candidate.training.lr, *_TRAINING)
        outputs["delta"] = candidate.training.delta
    inputs: dict[str, Any] = {"images": trained.images, "labels": trained.labels[: len(first)]}
    there, facts = process.run(job, inputs, outputs)
    if not np.array_equal(there["features"], first):
        raise ExportError("the exported model's features differ from the training side's")
    check_within(there["logits"], logits, candidate.bound[:count], "the exported file")
    if candidate.training is not None:
        check_delta(there["delta"], candidate.training.delta)
    return FileFacts(
        bytes=file.stat().st_size,
        sha256=sha256_file(file),
        runtime=f"torch {torch.__version__}",
        processor=processor(),
        features_equal=True,
        default_engine=_by_default(facts, there["default_logits"], trained),
    )


def _tell_by_default(name: str, engine: str, default: DefaultEngine | None) -> None:
    if default is None or default.engine == engine:
        return
    who = f"{name} is right on {engine}; torch's {default.engine}"
    advice = f"see {card_path(Path(name))}"
    if default.check is None:
        logger.warning("%s does not run it (%s); %s", who, default.problem, advice)
    else:
        tell(default.check, who, advice)


def _by_default(
    facts: Mapping[str, Any], logits: FloatArray, trained: TrainedModel
) -> DefaultEngine:
    """Results with the engine that torch picks on this machine; never a reason to refuse."""
    count, engine = len(logits), str(facts["engine"])
    if problem := str(facts["problem"]):
        return DefaultEngine(engine=engine, problem=problem)
    try:
        check = measure(logits, trained.trained_logits[:count], trained.labels[:count])
    except ExportError as exc:
        return DefaultEngine(engine=engine, problem=str(exc))
    return DefaultEngine(engine=engine, check=check)
