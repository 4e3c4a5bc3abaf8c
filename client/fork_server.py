"""Flower's command ``flwr-clientapp`` for a device, without its seconds of imports.

Flower's SuperNode starts this command for each message, by its name, and most of what that costs is
the import of torch. ``install`` makes a folder with a command of that name to stand first on the
SuperNode's PATH. Its first call loads the app and stays; those after it hand over their arguments
and end, and for each the first forks a child, which shares the imports' memory. So a message still
has a process of its own, and one that crashes takes nothing along.

Nothing of Flower's is replaced: a child runs Flower's own command with Flower's own arguments.
Where anything fails the call becomes that command, as if this file were not there.
"""

from __future__ import annotations

import gc
import json
import os
import shlex
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

__all__ = ["install"]

_COMMAND = "flwr-clientapp"
_SOCKET = "socket"
_TAKEN = b"taken"
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
    """Answer one call of the command; the first answers those that follow too."""
    script, *arguments = sys.argv[1:]
    folder = Path(script).parent
    try:
        if _hand_over(folder / _SOCKET, arguments):
            return 0
        server = _listen(folder / _SOCKET)
        command = _load()
        _fork(command, arguments, server)
    except Exception as exc:
        print(f"fedhead: no fork server, Flower goes its own way: {exc!r}", file=sys.stderr)
        _become_flowers(folder, arguments)
    _serve(command, server)
    return 0


def _hand_over(path: Path, arguments: Sequence[str]) -> bool:
    """Whether there is a server, and it has made a child for these arguments."""
    with socket.socket(socket.AF_UNIX) as server:
        try:
            server.connect(str(path))
            server.sendall(json.dumps(arguments).encode())
            server.shutdown(socket.SHUT_WR)
            return _received(server) == _TAKEN
        except (FileNotFoundError, ConnectionError):
            return False


def _listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)  # its server is dead
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
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


def _become_flowers(folder: Path, arguments: Sequence[str]) -> NoReturn:
    """Become Flower's own command, which stands behind this one on the PATH."""
    rest = [part for part in os.get_exec_path() if Path(part) != folder]
    environment = dict(os.environ) | {"PATH": os.pathsep.join(rest)}
    os.execvpe(_COMMAND, [_COMMAND, *arguments], environment)  # noqa: S606 - no shell is wanted


def _serve(command: Callable[[], object], server: socket.socket) -> None:
    """Fork for each call that comes, while the parent lives and calls."""
    parent = os.getppid()
    server.settimeout(_PARENT_POLL_SECONDS)
    last = time.monotonic()
    while os.getppid() == parent and time.monotonic() - last < _IDLE_SECONDS:
        with suppress(TimeoutError, ConnectionError, ValueError):
            connection, _ = server.accept()
            with connection:
                connection.settimeout(_PARENT_POLL_SECONDS)
                _fork(command, json.loads(_received(connection)), server, connection)
                last = time.monotonic()
                connection.sendall(_TAKEN)


def _received(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


def _fork(command: Callable[[], object], arguments: Sequence[str], *sockets: socket.socket) -> None:
    """Run Flower's command in a child; the imports start no thread that a child would miss."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children that end leave nothing behind
    if os.fork():
        return
    code: object = 1
    try:
        for connection in sockets:
            connection.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
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
