"""Keeps a command, and all that it starts: none of them outlives whoever asked for it.

Started as a script with the command, and with a pipe as standard input. When the pipe closes,
which the system does however the process at its other end dies, the command is asked to end, and
what is left after some seconds is killed. When the command ends, what it had started is killed at
once. Flower's processes start no process group of their own, so one group holds them all. Should
somebody kill the keeper itself, Linux asks the command to end.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress

# Flower's own processes take up to five seconds for their farewells.
_GRACE_SECONDS = 6.0
_PR_SET_PDEATHSIG = 1


def keep(command: Sequence[str]) -> int:
    """Run a command while the pipe is open; its exit code, as a shell has it."""
    # A service's come to all its processes. Not SIG_IGN, which the command would inherit.
    for received in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(received, lambda *_: None)
    process = subprocess.Popen(  # noqa: S603
        command,
        stdin=subprocess.DEVNULL,
        process_group=0,
        preexec_fn=_end_with_keeper,  # there is no other thread yet
    )
    threading.Thread(target=_end_with_pipe, args=(process,), daemon=True).start()
    code = process.wait()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return code if code >= 0 else 128 - code


def _end_with_keeper() -> None:
    with suppress(OSError, AttributeError):  # no Linux
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _end_with_pipe(process: subprocess.Popen[bytes]) -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(keep(sys.argv[1:]))
