"""device-head.safetensors: the head alone, for devices that already have the backbone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from common.errors import ExportError
from common.files import sha256_file, write_atomic
from common.machine import processor
from server.export.card import FileFacts
from server.export.fresh_process import fresh_process
from server.export.runtime_cards import ExportReport, draft_card, finish
from server.export.trained import TrainedModel

__all__ = ["export_head", "head_file"]


def head_file(trained: TrainedModel) -> bytes:
    """The arguments of ``set_head``: weight, bias and, as metadata, fingerprint and classes."""
    metadata = {
        "fingerprint": trained.backbone.fingerprint,
        "classes": json.dumps(trained.classes),
    }
    return save({"weight": trained.head.weight, "bias": trained.head.bias}, metadata)


def export_head(trained: TrainedModel, path: Path) -> ExportReport:
    """Write the head.

    Raises:
        ExportError: a fresh process reads something different.
    """
    card = draft_card(trained, "head")
    head, facts = trained.head, {}
    with fresh_process("run_head.py") as process:

        def write(temporary: Path) -> None:
            temporary.write_bytes(head_file(trained))
            outputs = {"weight": head.weight, "bias": head.bias}
            there, found = process.run({"model": str(temporary)}, {}, outputs)
            for name, array in outputs.items():
                if not np.array_equal(there[name], array):
                    raise ExportError(f"the exported file's {name} differs from the head's")
            if found["metadata"]["fingerprint"] != trained.backbone.fingerprint:
                raise ExportError("the exported file names another backbone")
            facts["runtime"] = found["runtime"]

        write_atomic(path, write)
    size, digest = path.stat().st_size, sha256_file(path)
    return finish(
        card,
        path,
        FileFacts(bytes=size, sha256=digest, runtime=facts["runtime"], processor=processor()),
    )
