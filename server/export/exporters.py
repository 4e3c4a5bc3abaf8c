"""A trained head with its backbone as files for other machines, one for each kind of runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from common.errors import ExportError
from common.progress import stage
from server.export.other_runtime import check_installed
from server.export.runtime_cards import ExportReport
from server.export.targets.executorch import export_executorch
from server.export.targets.head import export_head
from server.export.targets.onnx import export_onnx
from server.export.targets.torchscript import export_device, export_lite, export_model
from server.export.trained import TrainedModel
from server.export.usage import FILES

__all__ = ["FILES", "ExportReport", "check_installed", "export"]

_EXPORTERS: Mapping[str, Callable[[TrainedModel, Path], ExportReport]] = {
    "model": export_model,
    "device": export_device,
    "lite": export_lite,
    "onnx": export_onnx,
    "executorch": export_executorch,
    "head": export_head,
}


def export(
    trained: TrainedModel, target: str, path: Path, *, bytecode: int | None = None
) -> ExportReport:
    """Write one file and, beside it, its card.

    Args:
        trained: what to export.
        target: a key of ``FILES``.
        path: of the file; one that exists is replaced.
        bytecode: version of the lite file's bytecode, for an older runtime.

    Raises:
        ExportError: a file that gives something else, when it is loaded in a fresh process, than
            was promised of it; never because another engine or runtime rounds otherwise on this
            machine. Then nothing is left of it, and a file that was there before stays.
        MissingExtraError: the target's runtime is not installed.
        OSError: as the operating system says (disk full, no permission); no half file is left.
    """
    if path.suffix == ".json":
        raise ExportError(f"{path}: the card beside the file takes the suffix .json")
    with stage(f"exporting {path.name}"):
        if target == "lite":
            return export_lite(trained, path, bytecode)
        return _EXPORTERS[target](trained, path)
