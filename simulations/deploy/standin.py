"""Flower's commands with the operator's secret, and without strangers' code.

Flower's SuperLink and SuperExec start further processes of Flower's by their names. ``install``
makes a folder with commands of these names to stand first on their PATH. Each runs Flower's own
command in this module, which sends the secret along, and only to the door it is for. Of a
deployment, ``flwr-serverapp`` runs the ServerApp that is installed here, and those by which Flower
would run other things from a bundle refuse.
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
    """Make commands in a folder of their own.

    Args:
        folder: only its owner can write in it.
        path: the PATH on which Flower's own commands are found.
        names: of Flower's commands that carry the secret.
        refused: of those that do nothing.

    Returns:
        The PATH with the folder before it.
    """
    # -P: a folder named simulations where Flower was started must not be taken for ours.
    start = shlex.join(["exec", sys.executable, "-P", "-m", "simulations.deploy.standin"])
    lines = {name: f'{start} {shlex.quote(name)} "$@"' for name in names}
    lines |= {name: f'echo "fedhead: {name} {_REFUSAL}" >&2; exit 1' for name in refused}
    for name, line in lines.items():
        script = folder / name
        script.write_text(f"#!/bin/sh\n{line}\n")
        script.chmod(0o700)
    return os.pathsep.join([str(folder), path])


def operator_environment(server: Path) -> dict[str, str]:
    """Variables by which stand-ins find the door and the secret of the server with this folder."""
    return carrying(operator_secret(server).resolve(), f"https://{door(server)}")


def carrying(secret: Path, address: str) -> dict[str, str]:
    """Variables by which stand-ins find a file with a secret, and the URL it is for."""
    return {_SECRET: str(secret), _DOOR: address}


def main(name: str, environment: Mapping[str, str]) -> object:
    """Be one of Flower's commands, to its end."""
    (entry,) = entry_points(group="console_scripts", name=name)
    _send_secret(read_secret_file(Path(environment[_SECRET])), environment[_DOOR])
    if name == INSTALLED_SERVERAPP:
        from simulations.deploy.serverapp import use_installed

        use_installed(Path(environment[_SECRET]).parent)
    return entry.load()()


def _send_secret(secret: str, address: str) -> None:
    """Have Flower's clients carry the secret where they speak to that address."""
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
