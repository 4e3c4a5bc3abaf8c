"""Files for runtimes other than torch; only measured, because a runtime may round differently.

The scales of a backbone are such that none does (``common.backbone.agreement``), but backbones of
earlier versions have others, and a runtime's next version may compute in another way.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from common.errors import MissingExtraError
from common.files import sha256_file, write_atomic
from common.machine import processor
from common.types import FloatArray
from server.export.card import FileFacts, SelfCheck
from server.export.fresh_process import fresh_process
from server.export.parity import measure, rounding, tell
from server.export.runtime_cards import ExportReport, draft_card, finish
from server.export.trained import TrainedModel

__all__ = ["OTHER_RUNTIMES", "check_installed", "export_checked", "is_installed"]

OTHER_RUNTIMES = {"onnx": ("onnx", "onnxruntime"), "executorch": ("executorch",)}
"""Packages that a runtime needs beside torch. The extra is named after the runtime."""

_RUNTIMES = {"device-pte": "executorch"}
"""The runtime of targets that are not named after theirs."""


def is_installed(target: str) -> bool:
    """Whether all of a target's packages are installed."""
    return all(map(find_spec, _packages(target)))


def check_installed(target: str) -> None:
    """Refuse a target whose runtime is not installed; to be called before the long work.

    Raises:
        MissingExtraError: names the command that installs it.
    """
    for package in _packages(target):
        if find_spec(package) is None:
            extra = _RUNTIMES.get(target, target)
            raise MissingExtraError(package, extra, f"--target {target}")


def _packages(target: str) -> tuple[str, ...]:
    return OTHER_RUNTIMES.get(_RUNTIMES.get(target, target), ())


def export_checked(
    trained: TrainedModel,
    path: Path,
    target: str,
    build: Callable[[TrainedModel], bytes],
    script: str,
) -> ExportReport:
    """Write a file that only gives logits.

    Args:
        trained: what to export.
        path: the file to write.
        target: its key in ``server.export.exporters.FILES``.
        build: makes the file's bytes.
        script: a script in server/export that runs the file in a process with only its runtime.

    Raises:
        ExportError: the file does not run, or its logits are not finite.
        MissingExtraError: the runtime is not installed.
    """
    check_installed(target)
    count = len(trained.images)
    own, labels = trained.trained_logits[:count], trained.labels[:count]
    checks: list[SelfCheck] = []
    facts: list[FileFacts] = []
    # Started early, so that it imports the runtime while this process works.
    with fresh_process(script) as process:
        data = build(trained)

        def write(temporary: Path) -> None:
            temporary.write_bytes(data)
            job = {"model": str(temporary)}
            there, found = process.run(job, {"images": trained.images}, {"logits": own})
            checks.append(measure(there["logits"], own, labels))
            facts.append(
                FileFacts(
                    bytes=len(data),
                    sha256=sha256_file(temporary),
                    runtime=found["runtime"],
                    processor=processor(),
                    within_rounding=_is_within_rounding(there["logits"], trained),
                )
            )

        write_atomic(path, write)
    tell(checks[0], f"{path.name}: {facts[0].runtime} here", "measure it on the target machine")
    card = draft_card(trained, target, check=checks[0], engine=facts[0].runtime)
    return finish(card, path, facts[0])


def _is_within_rounding(logits: FloatArray, trained: TrainedModel) -> bool:
    count = len(logits)
    x = trained.backbone.affine(trained.features[:count])
    x = np.concatenate([x, np.ones((count, 1), np.float32)], axis=1)
    off = np.abs(logits - trained.logits[:count])
    return bool((off <= rounding(x, trained.head.matrix)).all())
