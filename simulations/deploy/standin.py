"""Stand-ins for Flower's commands, with the operator's secret and without foreign code.

Flower's SuperLink and SuperExec start further Flower processes by name. ``install`` makes a folder
with commands of these names, to be first on their PATH. Each runs Flower's command through this
module, which adds the secret to requests to the one address it is for. In a deployment,
``flwr-serverapp`` runs the installed ServerApp, and commands that would run other code from a
bundle refuse.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from simulations.deploy.operator import OperatorSecret, door, read_secret_file
from simulations.deploy.settings import operator_secret

__all__ = ["INSTALLED_SERVERAPP", "carrying", "install", "operator_environment"]

INSTALLED_SERVERAPP = "flwr-serverapp"
_SECRET, _DOOR = "FEDHEAD_OPERATOR_SECRET_FILE", "FEDHEAD_OPERATOR_DOOR"
_REFUSAL = "is not run here: a deployment runs only the installed fedhead"


def install(folder: Path, path: str, names: Iterable[str], refused: Iterable[str] = ()) -> str:
    """Write stand-in commands into a folder of their own.

    Args:
        folder: the folder; only its owner can write to it.
        path: the PATH on which Flower's commands are found.
        names: names of Flower's commands that send the secret.
        refused: names of commands that refuse to run.

    Returns:
        The PATH with the folder in front.
    """
    # -P: a folder named simulations where Flower was started must not be used instead of ours.
    start = shlex.join(["exec", sys.executable, "-P", "-m", "simulations.deploy.standin"])
    lines = {name: f'{start} {shlex.quote(name)} "$@"' for name in names}
    lines |= {name: f'echo "fedhead: {name} {_REFUSAL}" >&2; exit 1' for name in refused}
    for name, line in lines.items():
        script = folder / name
        script.write_text(f"#!/bin/sh\n{line}\n")
        script.chmod(0o700)
    return os.pathsep.join([str(folder), path])


def operator_environment(server: Path) -> dict[str, str]:
    """Variables that tell stand-ins the address and the secret of the server with this folder."""
    return carrying(operator_secret(server).resolve(), f"https://{door(server)}")


def carrying(secret: Path, address: str) -> dict[str, str]:
    """Variables that tell stand-ins the file of a secret and the URL that it is for."""
    return {_SECRET: str(secret), _DOOR: address}


def main(name: str, environment: Mapping[str, str]) -> object:
    """Run one of Flower's commands to its end."""
    (entry,) = entry_points(group="console_scripts", name=name)
    _send_secret(read_secret_file(Path(environment[_SECRET])), environment[_DOOR])
    if name == INSTALLED_SERVERAPP:
        from simulations.deploy.serverapp import use_installed

        use_installed(Path(environment[_SECRET]).parent)
    return entry.load()()


def _send_secret(secret: str, address: str) -> None:
    """Make Flower's clients send the secret to that address."""
    from flwr.supercore.protobuf.client import ProtobufClient, ProtobufClientInterceptor

    flowers = ProtobufClient.__init__

    def init(
        self: ProtobufClient,
        base_url: str,
        *,
        interceptors: Sequence[ProtobufClientInterceptor] = (),
        **options: Any,
    ) -> None:
        ours = (OperatorSecret(secret),) if base_url.rstrip("/") == address else ()
        flowers(self, base_url, interceptors=(*interceptors, *ours), **options)

    ProtobufClient.__init__ = init  # type: ignore[method-assign]


if __name__ == "__main__":
    _, *sys.argv = sys.argv
    sys.exit(main(sys.argv[0], os.environ))  # type: ignore[arg-type]
