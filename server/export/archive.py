"""A TorchScript file's bytes: small, and the same for the first model that a process exports."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping

import torch

__all__ = ["NUMBERED", "compact", "save_script"]

NUMBERED = "___torch_mangle_"
"""In the name of a class where a process has compiled another of its name, see common.apart."""


def save_script(scripted: torch.jit.ScriptModule) -> bytes:
    """What ``torch.jit.save`` writes."""
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    return buffer.getvalue()


def compact(saved: bytes, records: Mapping[str, str | bytes]) -> bytes:
    """A saved module, for the full or the lite interpreter, with more records in its archive.

    TorchScript's own archive holds the paths and lines of the Python source (``debug_pkl``,
    for tracebacks) and an identifier over everything, which would differ from one
    installation to the next. Both are left out; no loader needs them. Compressing takes a
    sixth off, for each zero point of a channel is eight bytes of zeros.

    TorchScript also numbers a class where the process has compiled another of its name, as it has
    after exporting on another backbone: see ``common.apart``.
    """
    target = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved)) as source,
        zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
    ):
        for record in source.infolist():
            if not record.filename.endswith((".debug_pkl", "/.data/serialization_id")):
                archive.writestr(_entry(record.filename), source.read(record))
        for name, content in records.items():
            archive.writestr(_entry(name), content)
    return target.getvalue()


def _entry(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)  # its time stamp is 1980
    info.compress_type = zipfile.ZIP_DEFLATED
    return info
