"""Measures a model file's speed and memory in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from common.backbone.frozen import UInt8Array
from common.errors import ExportError
from common.types import FloatArray

__all__ = ["Job", "Measured", "Runtime", "Timing", "run_file", "run_script"]

Runtime = Literal["torchscript", "lite", "onnx", "executorch"]

_MOST_SECONDS = 1800
# The same for all runtimes, because the memory of some depends on it.
_FEATURE_BATCH = 32


@dataclass(frozen=True)
class Job:
    """A file to run, and how.

    Attributes:
        file: the model.
        runtime: the runtime to use.
        engine: torch's quantized engine to set before loading; "": none.
        threads: numbers of threads to measure.
        batches: numbers of images per call to measure.
        seconds: approximate time for repeating each measurement.
    """

    file: Path
    runtime: Runtime
    engine: str = ""
    threads: tuple[int, ...] = (1,)
    batches: tuple[int, ...] = (1,)
    seconds: float = 0.5


@dataclass(frozen=True)
class Timing:
    """Median time of a call.

    Attributes:
        threads: number of threads.
        batch: images per call, in a buffer that is made once.
        seconds: time of a call.
    """

    threads: int
    batch: int
    seconds: float

    @property
    def images_per_second(self) -> float:
        return self.batch / self.seconds


@dataclass(frozen=True, eq=False)
class Measured:
    """Measurements in a fresh process; memory is the growth of its peak over the bare runtime's.

    Attributes:
        load_seconds: time to load the file.
        timings: one for each number of threads and batch size.
        memory_bytes: memory after loading and one image.
        peak_memory_bytes: memory after all batch sizes.
        features: float32 (n, d), if asked for.
    """

    load_seconds: float
    timings: tuple[Timing, ...]
    memory_bytes: int
    peak_memory_bytes: int
    features: FloatArray | None


def run_file(job: Job, images: UInt8Array, *, features: bool = False) -> Measured:
    """Measure a file.

    Args:
        job: the file to run, and how.
        images: uint8 (n, 3, S, S), n >= 1.
        features: whether to return the file's result for all images too.

    Raises:
        ExportError: the file does not run; the error says why.
    """
    with tempfile.TemporaryDirectory(prefix="fedhead-speed-") as name:
        folder = Path(name)
        images.tofile(folder / "images")
        wanted = {"path": str(folder / "features"), "batch": _FEATURE_BATCH}
        found = run_script(
            "run_file.py",
            {
                "file": str(job.file),
                "runtime": job.runtime,
                "engine": job.engine,
                "threads": job.threads,
                "batches": job.batches,
                "seconds": job.seconds,
                "images": {"path": str(folder / "images"), "shape": images.shape},
                "features": wanted if features else None,
            },
        )
        result = None
        if features:
            result = np.fromfile(folder / "features", np.float32).reshape(len(images), -1)
    return Measured(
        found["load_seconds"],
        tuple(Timing(**timing) for timing in found["timings"]),
        found["memory_bytes"],
        found["peak_memory_bytes"],
        result,
    )


def run_script(script: str, job: Mapping[str, object]) -> Any:
    """Run a script of this folder and return its last line, which is JSON.

    Raises:
        ExportError: it failed or took too long; names the model file.
    """
    # -P: modules must not be imported from the script's folder.
    command = [sys.executable, "-P", "-W", "ignore", str(Path(__file__).with_name(script))]
    try:
        done = subprocess.run(  # noqa: S603  # our own script
            command,
            input=json.dumps(job),
            capture_output=True,
            text=True,
            timeout=_MOST_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise ExportError(f"{job['file']}: took more than {_MOST_SECONDS} s") from exc
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise ExportError(f"{job['file']}: does not run ({reason})")
    return json.loads(done.stdout.strip().splitlines()[-1])
