"""Runs a deployment's gateway: the service that phones call, and its node at the SuperLink.

Three processes work together, and each that ends is started again:

- the service, which alone keeps what phones send (client/gateway/service);
- Flower's SuperNode, with a key of its own under the reserved name ``gateway``;
- the process that answers the SuperNode's messages, by handing them to the service.
"""

from __future__ import annotations

import shlex
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

from common.errors import RunError
from common.phones import GATEWAY
from simulations.deploy.handshake import obstacle
from simulations.deploy.processes import (
    Process,
    alone,
    own_folder,
    running,
    socket_in,
    terminable,
)
from simulations.deploy.settings import OPERATORS_HOST, endpoint, gateway_folder, read_server
from simulations.engines.flower import flower_environment

__all__ = ["Kept", "gateway_commands", "register_gateway", "run_gateway"]

Say = Callable[[str], None]

_LOOK_SECONDS = 0.25
_FIRST_PAUSE_SECONDS = 1.0
# Short, because a round waits: Flower lets a killed SuperNode back in only after a minute.
_LONGEST_PAUSE_SECONDS = 10.0
_SETTLED_SECONDS = 10.0  # whoever lived so long had started well
_ANY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 - what a server listens on


def register_gateway(server: Path, say: Say) -> None:
    """Give the gateway a key, unless it has one, and let it in if the server runs.

    Raises:
        ConfigError, RunError: a file is missing or wrong, or the server refuses.
    """
    # Imported here: the process that watches goes without them once the key is there.
    from simulations.deploy.certificates import public_half, write_device_keys
    from simulations.deploy.changes import let_in
    from simulations.deploy.device_keys import comparable, revoked_keys

    folder = gateway_folder(server)
    folder.mkdir(exist_ok=True)
    folder.chmod(0o700)
    key = folder / f"{GATEWAY}.key"
    if key.exists() and comparable(public_half(key)) in revoked_keys(server):
        key.unlink()
    write_device_keys(key, server / "devices" / f"{GATEWAY}.pub")
    let_in(server, say)


def gateway_commands(server: Path, own: Path) -> dict[str, list[str]]:
    """The commands of a gateway's processes, by what they are.

    Args:
        server: the server's folder.
        own: a folder for their sockets, which only its owner may enter.

    Raises:
        ConfigError, RunError: a file is missing or wrong.
    """
    python = [sys.executable, "-P", "-m"]
    service, node = socket_in(own, "phones"), socket_in(own, "node")
    supernode = [
        *python, "client.supernode", node, str(own / "refused"),
        "--superlink", _superlink(server),
        "--root-certificates", _there(server / "ca.crt"),
        "--auth-supernode-private-key", _there(gateway_folder(server) / f"{GATEWAY}.key"),
        "--node-config", f'gateway="{service}"',
    ]  # fmt: skip
    return {
        "service": [*python, "client.gateway.service", str(server), service],
        "SuperNode": supernode,
        "bridge": [*python, "client.fork_server", node, "--app", "client.gateway.bridge"],
    }


def run_gateway(server: Path, say: Say) -> NoReturn:
    """Serve phones until interrupted.

    Args:
        server: the deployment's server folder.
        say: called with lines for the person who started it.

    Raises:
        ConfigError, RunError: a file is missing or wrong, or the gateway runs already.
        KeyboardInterrupt: it was interrupted.
    """
    settings = read_server(server)
    _there(server / "server.crt")
    register_gateway(server, say)
    environment = flower_environment() | {
        "FLWR_HOME": str(gateway_folder(server) / "flower"),
        "OMP_NUM_THREADS": "1",
    }
    with (
        terminable(),
        alone(gateway_folder(server), "fedhead gateway"),
        own_folder(GATEWAY) as own,
        ExitStack() as stack,
    ):
        kept = {
            what: stack.enter_context(Kept(what, command, environment, say))
            for what, command in gateway_commands(server, own).items()
        }
        authority, trusted = server / "ca.crt", (server / "ca.crt").read_bytes()
        is_ready = False
        while True:
            if authority.read_bytes() != trusted:
                trusted = authority.read_bytes()
                say("the trusted authorities changed: Flower's SuperNode starts again")
                kept["SuperNode"].end()
            if kept["SuperNode"].look():
                why = obstacle(_superlink(server), authority, _refused(own))
                say(f"Flower's SuperNode ended: {why}")
            kept["service"].look()
            kept["bridge"].look()
            if not is_ready and _listens(own / "phones"):
                is_ready = True
                say(f"phones are served at port {settings.gateway_port}; end with Ctrl-C")
            time.sleep(_LOOK_SECONDS)


class Kept:
    """A process that is started again when it ends, each time after twice the pause.

    Args:
        what: what it is, for people.
        command: starts it.
        environment: its environment.
        say: called with lines about its ends.
    """

    def __init__(
        self, what: str, command: Sequence[str], environment: Mapping[str, str], say: Say
    ) -> None:
        self._what, self._command, self._environment = what, command, environment
        self._say = say
        self._stack = ExitStack()
        self._process: Process | None = None
        self._pause, self._due, self._started = _FIRST_PAUSE_SECONDS, 0.0, 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def end(self) -> None:
        """End the process; the next look starts it again at once."""
        self._stack.close()
        self._process, self._due = None, 0.0

    def look(self) -> bool:
        """Start the process if that is due; return whether it was found to have ended."""
        if self._process is None:
            if time.monotonic() >= self._due:
                self._say(f"$ {shlex.join(self._command)}")
                self._started = time.monotonic()
                started = running(self._command, self._environment)
                self._process = self._stack.enter_context(started)
            return False
        code = self._process.poll()
        if code is None:
            return False
        self.end()
        if time.monotonic() - self._started > _SETTLED_SECONDS:
            self._pause = _FIRST_PAUSE_SECONDS
        self._say(f"the {self._what} ended with {code}. Again in {self._pause:g} s.")
        self._due = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE_SECONDS)
        return True


def _superlink(server: Path) -> str:
    """host:port where the gateway's SuperNode reaches the server, which is on this machine."""
    settings = read_server(server)
    host = OPERATORS_HOST if settings.host in _ANY_ADDRESS else settings.host
    return endpoint(host, settings.port)


def _refused(own: Path) -> str:
    """The server's last refusal; empty: none."""
    file = own / "refused"
    said = file.read_text() if file.exists() else ""
    file.unlink(missing_ok=True)
    return said


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(path))
        except OSError:
            return False
    return True


def _there(path: Path) -> str:
    if not path.is_file():
        raise RunError(f"{path} is missing: fedhead deploy writes it")
    return str(path)
