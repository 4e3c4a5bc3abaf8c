"""The last word on an exported file: what it gives in a process that knows nothing of this one.

Quantized models have failed silently on reload (wrong weights, graphs that run only where they
were made), so a file takes its final name after this check.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from common.errors import ExportError
from common.images import ByteArray
from common.types import FloatArray

__all__ = ["fresh_process"]

_CHECK_SECONDS = 1800

Check = Callable[[Path, ByteArray, FloatArray], None]


@contextmanager
def fresh_process(images: ByteArray) -> Iterator[Check]:
    """A Python that has imported torch and waits to be told which file to check."""
    # -P: the script's own folder must not offer modules.
    command = [sys.executable, "-P", str(Path(__file__).with_name("run_exported.py"))]
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryDirectory(prefix="fedhead-export-") as name,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process,  # noqa: S603
    ):
        try:
            yield partial(_check_file, process, Path(name), images)
        finally:
            process.kill()


def _check_file(
    process: subprocess.Popen[bytes],
    folder: Path,
    images: ByteArray,
    model: Path,
    features: ByteArray,
    logits: FloatArray,
) -> None:
    """Compare bit by bit what the file gives in that process and what it was made from here."""
    images.tofile(folder / "images")
    job: dict[str, object] = {"model": str(model), "shape": images.shape}
    job |= {name: str(folder / name) for name in ("images", "features", "logits")}
    try:
        _, error = process.communicate(json.dumps(job).encode(), timeout=_CHECK_SECONDS)
    except subprocess.TimeoutExpired as exc:
        raise ExportError(f"the model's check took more than {_CHECK_SECONDS} s") from exc
    if process.returncode != 0:
        reason = (error.decode(errors="replace").strip().splitlines() or ["no output"])[-1]
        raise ExportError(f"the exported model does not run in a fresh process: {reason}")
    there = np.fromfile(folder / "features", np.uint8).reshape(-1, features.shape[1])
    if not np.array_equal(there, features[: len(there)]):
        raise ExportError("the exported model's features differ from the training side's")
    result = np.fromfile(folder / "logits", np.float32).reshape(logits.shape)
    if result.tobytes() != logits.tobytes():
        off = float(np.abs(result - logits).max())
        raise ExportError(f"the exported file's logits are off by up to {off:.3g}")
