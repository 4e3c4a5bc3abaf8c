"""The last word on an exported file: what it gives in a process that knows nothing of this one.

Quantized models have failed silently on reload (wrong weights, graphs that run only where they
were made), so a file takes its final name after this check. The process that runs it imports the
file's own runtime and nothing of fedhead: it sees what a stranger's machine sees.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.errors import ExportError

__all__ = ["FreshProcess", "fresh_process"]

_CHECK_SECONDS = 1800

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class FreshProcess:
    """A Python that imports a runtime and waits to be told which file to run.

    Attributes:
        process: its standard input takes one JSON object, then it works and ends.
        folder: where arrays pass through raw files.
    """

    process: subprocess.Popen[bytes]
    folder: Path

    def run(
        self, job: Mapping[str, object], inputs: Arrays, outputs: Arrays
    ) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """What the file gives.

        Args:
            job: what the script must know beside the arrays.
            inputs: written to files; the script gets path and shape of each.
            outputs: arrays of the dtypes and shapes that are expected.

        Returns:
            The outputs, and the last JSON object that the script printed.

        Raises:
            ExportError: the file does not run there, or gives arrays of another size.
        """
        order: dict[str, object] = {**job, "out": {k: str(self.folder / k) for k in outputs}}
        for name, array in inputs.items():
            array.tofile(self.folder / name)
            order[name] = {"path": str(self.folder / name), "shape": array.shape}
        try:
            text, error = self.process.communicate(
                json.dumps(order).encode(), timeout=_CHECK_SECONDS
            )
        except subprocess.TimeoutExpired as exc:
            raise ExportError(f"the model's check took more than {_CHECK_SECONDS} s") from exc
        # What was printed counts: what a script does after that may end it.
        if self.process.returncode != 0 and not text.strip():
            lines = [line for line in error.decode(errors="replace").splitlines() if line.strip()]
            reason = lines[-1].strip() if lines else "no output"
            raise ExportError(f"the exported model does not run in a fresh process: {reason}")
        results = {k: self._read(k, expected) for k, expected in outputs.items()}
        return results, json.loads(text.splitlines()[-1])

    def _read(self, name: str, expected: npt.NDArray[Any]) -> npt.NDArray[Any]:
        result = np.fromfile(self.folder / name, expected.dtype)
        if result.size != expected.size:
            raise ExportError(
                f"the exported model gives {result.size} {name}, expected {expected.size}"
            )
        return result.reshape(expected.shape)


@contextmanager
def fresh_process(script: str, python: Sequence[str] = ()) -> Iterator[FreshProcess]:
    """Start a script of this folder, so that it imports while this process does other work.

    Args:
        script: its name.
        python: how to start Python on another machine; without it, this one's.
    """
    # -P: the script's own folder must not offer modules.
    command = [*(python or [sys.executable]), "-P", str(Path(__file__).with_name(script))]
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryDirectory(prefix="fedhead-export-") as name,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process,  # noqa: S603
    ):
        try:
            yield FreshProcess(process, Path(name))
        finally:
            process.kill()
