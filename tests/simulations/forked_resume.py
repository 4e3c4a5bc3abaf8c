"""``fedhead resume`` where everything is imported, by the model's check too; see test_kill."""

from __future__ import annotations

import io
import multiprocessing
import multiprocessing.connection
import runpy
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path

import server.export.fresh_process
import server.export.targets.torchscript
from fedhead.cli.main import main
from server.export.fresh_process import FreshProcess


class ForkedCheck:
    """The process that an exported file is checked in, forked before torch has run anything.

    What is used of a subprocess.Popen; its imports are a run's longest part.
    """

    returncode = 0

    def __init__(self) -> None:
        self._pipe, other = multiprocessing.Pipe()
        target = self._serve
        self._process = multiprocessing.get_context("fork").Process(target=target, args=(other,))
        self._process.start()
        other.close()
        self.script = ""

    def _serve(self, pipe: multiprocessing.connection.Connection) -> None:
        self._pipe.close()  # so that the other side's end is the last one
        with suppress(EOFError):
            script, order = pipe.recv()
            sys.stdin = io.StringIO(order)
            with redirect_stdout(io.StringIO()) as said:
                runpy.run_path(script, run_name="__main__")
            pipe.send(said.getvalue())

    def communicate(self, order: bytes, timeout: float) -> tuple[bytes, bytes]:
        self._pipe.send((self.script, order.decode()))
        assert self._pipe.poll(timeout)
        return self._pipe.recv().encode(), b""

    def end(self) -> None:
        self._process.kill()
        self._process.join()


def resume() -> None:
    check = ForkedCheck()

    @contextmanager
    def ready(script: str) -> Iterator[FreshProcess]:
        check.script = str(Path(server.export.fresh_process.__file__).with_name(script))
        with tempfile.TemporaryDirectory() as folder:
            yield FreshProcess(check, Path(folder))  # type: ignore[arg-type]

    server.export.targets.torchscript.fresh_process = ready  # type: ignore[assignment]
    try:
        main()
    finally:
        check.end()


if __name__ == "__main__":
    resume()
