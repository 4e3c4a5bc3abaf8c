"""The lite interpreter's file: its bytecode, version and operators."""

from __future__ import annotations

import io
import tempfile
import warnings

import torch
from torch.jit import mobile

from common.errors import ExportError

__all__ = ["bytecode_version", "lite_operators", "save_lite"]

_OLDEST_BYTECODE = 4


def save_lite(scripted: torch.jit.ScriptModule, bytecode: int | None = None) -> bytes:
    """The file's bytes, in this torch's bytecode version or an older one.

    Raises:
        ExportError: this torch cannot write that version.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Lite Interpreter is deprecated")
        data: bytes = scripted._save_to_buffer_for_lite_interpreter()
    own = bytecode_version(data)
    if bytecode is None or bytecode == own:
        return data
    if not _OLDEST_BYTECODE <= bytecode < own:
        raise ExportError(
            f"bytecode version {bytecode} cannot be written by torch {torch.__version__}, "
            f"expected {_OLDEST_BYTECODE} to {own}"
        )
    older: bytes = mobile._backport_for_mobile_to_buffer(io.BytesIO(data), bytecode)  # type: ignore[no-untyped-call]
    return older


def bytecode_version(lite: bytes) -> int:
    """The bytecode version of a file's content."""
    version: int = mobile._get_model_bytecode_version(io.BytesIO(lite))
    return version


def lite_operators(saved: bytes) -> tuple[str, ...]:
    """Names of the operators that a runtime must have to load a file."""
    # From a path, because torch's function for buffers takes the content for a file name.
    with tempfile.NamedTemporaryFile(suffix=".ptl") as file:
        file.write(saved)
        file.flush()
        return tuple(sorted(mobile._get_model_ops_and_info(file.name)))  # type: ignore[no-untyped-call]
