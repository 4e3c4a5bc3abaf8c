"""Runs a command so that it, and all that it starts, never outlives the process that asked for it.

It is started as a script with the command as its arguments and a pipe as standard input. The system
closes the pipe when the process at the other end dies, for whatever reason. Then the command is
asked to end, and remaining processes are killed after some seconds. When the command ends,
everything that it had started is killed at once. One process group holds all of them, because
Flower's processes do not make their own. If the keeper itself is killed, Linux asks the command to
end.
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

# Flower's processes may need up to five seconds to end.
_GRACE_SECONDS = 6.0
_PR_SET_PDEATHSIG = 1


def keep(command: Sequence[str]) -> int:
    """Run a command while the pipe is open; return its exit code in a shell's form."""
    # A service sends signals to all its processes. Not SIG_IGN, which the command would inherit.
    for received in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(received, lambda *_: None)
    process = subprocess.Popen(  # noqa: S603
        command,
        stdin=subprocess.DEVNULL,
        process_group=0,
        preexec_fn=_end_with_keeper,  # safe, because there is no other thread yet
    )
    threading.Thread(target=_end_with_pipe, args=(process,), daemon=True).start()
    code = process.wait()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return code if code >= 0 else 128 - code


def _end_with_keeper() -> None:
    with suppress(OSError, AttributeError):  # not on Linux
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
