"""Exports a trained head with its backbone, one file for each kind of runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from common.errors import ExportError
from common.progress import stage
from server.export.other_runtime import check_installed
from server.export.runtime_cards import ExportReport
from server.export.targets.device_pte import export_device_pte
from server.export.targets.executorch import export_executorch
from server.export.targets.head import export_head
from server.export.targets.onnx import export_onnx
from server.export.targets.torchscript import export_device, export_lite, export_model
from server.export.trained import TrainedModel
from server.export.usage import FILES, PREDICT_ONLY

__all__ = ["FILES", "ExportReport", "check_installed", "export"]

_EXPORTERS: Mapping[str, Callable[[TrainedModel, Path], ExportReport]] = {
    "model": export_model,
    "device": export_device,
    "lite": export_lite,
    "onnx": export_onnx,
    "executorch": export_executorch,
    "device-pte": export_device_pte,
    "head": export_head,
}


def export(
    trained: TrainedModel, target: str, path: Path, *, bytecode: int | None = None
) -> ExportReport:
    """Write one file and, beside it, its card.

    Args:
        trained: what to export.
        target: a key of ``FILES``.
        path: the file to write; an existing one is replaced.
        bytecode: bytecode version of the lite file, for an older runtime.

    Raises:
        ExportError: the file, loaded in a fresh process, gives other results than promised. Then
            it is removed, and an earlier file stays. Different rounding of another engine or
            runtime on this machine is never an error.
        MissingExtraError: the target's runtime is not installed.
        OSError: the file cannot be written (disk full, no permission); no partial file is left.
    """
    if path.suffix == ".json":
        raise ExportError(f"{path}: the suffix .json is for the card beside the file")
    if target in PREDICT_ONLY:
        trained = trained.for_prediction()
    with stage(f"exporting {path.name}"):
        if target == "lite":
            return export_lite(trained, path, bytecode)
        return _EXPORTERS[target](trained, path)
