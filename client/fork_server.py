"""Flower's command ``flwr-clientapp`` for a device, without its seconds of imports.

Flower's SuperNode starts this command for each message, by its name, and most of what that costs is
the import of torch. ``install`` makes a folder with a command of that name to stand first on the
SuperNode's PATH. Started without arguments, before the first message comes, it imports the app and
stays. The calls hand over their arguments and environment and end, and for each a child is forked,
which shares the imports' memory. So a message still has a process of its own, and one that crashes
takes nothing along. A call that finds no server leaves its message to Flower's own command, and
becomes the server once that has ended: where rounds are farther apart than the server's patience.

Nothing of Flower's is replaced: a child runs Flower's own command. A call that cannot be handed
over soon, for whatever reason, becomes that command, as if this file were not there: Flower
gives up on a message that nobody works on for half a minute.
"""

from __future__ import annotations

import gc
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

__all__ = ["install"]

_COMMAND = "flwr-clientapp"
_SOCKET = "socket"
_READY, _TAKEN = b"ready", b"taken"
# With the import that a call then has to pay for itself, it is less than Flower's half minute.
_READY_SECONDS = 5.0
_PARENT_POLL_SECONDS = 2.0
# Rounds that are farther apart pay for the imports, and the device has its memory back.
_IDLE_SECONDS = 300.0


def install(folder: Path, path: str) -> str:
    """Make the command in a folder of its own.

    Args:
        folder: only its owner can write in it: who reaches the socket runs code as its owner.
        path: the PATH on which Flower's own command is found.

    Returns:
        The PATH with the folder before it.
    """
    script = folder / _COMMAND
    call = "import sys; from client.fork_server import main; sys.exit(main())"
    # -P: a folder named client where the SuperNode was started must not be taken for ours.
    start = shlex.join(["exec", sys.executable, "-P", "-c", call])
    script.write_text(f'#!/bin/sh\n{start} "$0" "$@"\n')
    script.chmod(0o700)
    return os.pathsep.join([str(folder), path])


def main() -> int:
    """Answer a call of the command, if it is one; where no server is, those that follow too."""
    script, *arguments = sys.argv[1:]
    folder = Path(script).parent
    flowers, parent = [_COMMAND, *arguments], os.getppid()
    # Flower's own command stands behind this one on the PATH.
    rest = [part for part in os.get_exec_path() if Path(part) != folder]
    environment = dict(os.environ) | {"PATH": os.pathsep.join(rest)}
    server = None
    try:
        taken = _hand_over(folder / _SOCKET, arguments, environment)
    except OSError:
        taken, server = False, _listen(folder / _SOCKET)
    if server:
        with server:
            if arguments:
                subprocess.run(flowers, env=environment, check=False)  # noqa: S603 - Flower's own
            _serve(server, _load(), parent)
    elif arguments and not taken:
        os.execvpe(_COMMAND, flowers, environment)  # noqa: S606 - no shell is wanted
    return 0


def _hand_over(path: Path, arguments: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether a server has made a child; False: it is not ready, or did not get that far.

    Raises:
        OSError: there is no server.
    """
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(str(path))
        with suppress(TimeoutError, ConnectionError):
            server.settimeout(_READY_SECONDS)
            if server.recv(len(_READY)) == _READY:
                server.settimeout(None)
                server.sendall(json.dumps([arguments, dict(environment)]).encode())
                server.shutdown(socket.SHUT_WR)
                return server.recv(len(_TAKEN)) == _TAKEN
    return False


def _listen(path: Path) -> socket.socket | None:
    """A socket for the calls to come; None: the system allows none at this path."""
    server = socket.socket(socket.AF_UNIX)
    try:
        path.unlink(missing_ok=True)  # its server is dead
        server.bind(str(path))
        server.listen()
    except OSError:
        server.close()
        return None
    return server


def _load() -> Callable[[], object]:
    """Flower's own command, with everything imported that it and the app need."""
    from importlib.metadata import entry_points

    import client.app  # noqa: F401

    (entry,) = entry_points(group="console_scripts", name=_COMMAND)
    command: Callable[[], object] = entry.load()
    # A child's collector would write to all objects and so copy the pages it shares.
    gc.collect()
    gc.freeze()
    return command


def _serve(server: socket.socket, command: Callable[[], object], parent: int) -> None:
    """Fork for each call that comes, while the parent lives and calls."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children that end leave nothing behind
    server.settimeout(_PARENT_POLL_SECONDS)
    last = time.monotonic()
    while os.getppid() == parent and time.monotonic() - last < _IDLE_SECONDS:
        # A caller that had no patience has gone, and sends nothing.
        with suppress(TimeoutError, ConnectionError, ValueError):
            connection, _ = server.accept()
            with connection:
                connection.settimeout(_PARENT_POLL_SECONDS)
                connection.sendall(_READY)
                received = b"".join(iter(lambda: connection.recv(65536), b""))  # noqa: B023
                arguments, environment = json.loads(received)
                if os.fork() == 0:
                    server.close()
                    connection.close()
                    _run(command, arguments, environment)
                last = time.monotonic()
                connection.sendall(_TAKEN)


def _run(
    command: Callable[[], object], arguments: Sequence[str], environment: Mapping[str, str]
) -> None:
    """Be Flower's command, in a child; the imports start no thread that it would miss."""
    code: object = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = [_COMMAND, *arguments]
        code = command()
    except SystemExit as exc:
        code = exc.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # The server's exit handlers are not the child's.
        os._exit(code if isinstance(code, int) else bool(code))
