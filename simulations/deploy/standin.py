"""Flower's commands as a deployment has them: with the operator's secret, without strangers' code.

Flower's SuperLink and SuperExec start further processes of Flower's by their names. ``install``
makes a folder with commands of these names to stand first on their PATH. Each runs Flower's own
command in this module, which sends the operator's secret along, and only to the door it is for.
``flwr-serverapp`` runs the ServerApp that is installed here. Those by which Flower would run
other things from a bundle refuse.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from simulations.deploy.operator import OperatorSecret, door, read_secret

__all__ = ["install", "operator_environment"]

_SERVER = "FEDHEAD_OPERATOR_SERVER"
_SERVERAPP = "flwr-serverapp"
_TRUSTED = frozenset({"flwr", "flower-superexec", _SERVERAPP})


def install(folder: Path, path: str, names: Iterable[str]) -> str:
    """Make commands in a folder of their own.

    Args:
        folder: only its owner can write in it.
        path: the PATH on which Flower's own commands are found.
        names: of Flower's commands.

    Returns:
        The PATH with the folder before it.
    """
    # -P: a folder named simulations where Flower was started must not be taken for ours.
    start = shlex.join(["exec", sys.executable, "-P", "-m", "simulations.deploy.standin"])
    for name in names:
        script = folder / name
        script.write_text(f'#!/bin/sh\n{start} {shlex.quote(name)} "$@"\n')
        script.chmod(0o700)
    return os.pathsep.join([str(folder), path])


def operator_environment(server: Path) -> dict[str, str]:
    """Variables by which stand-ins find the operator's secret; it is in none of them."""
    return {_SERVER: str(server.resolve())}


def main(name: str, environment: Mapping[str, str]) -> object:
    """Be one of Flower's commands, to its end."""
    if name not in _TRUSTED:
        return f"fedhead: {name} is not run here: a deployment runs only the installed fedhead"
    (entry,) = entry_points(group="console_scripts", name=name)
    _send_secret(Path(environment[_SERVER]))
    if name == _SERVERAPP:
        from simulations.deploy.serverapp import use_installed

        use_installed()
    return entry.load()()


def _send_secret(server: Path) -> None:
    """Have Flower's clients carry the secret where they speak to the operators' door."""
    from flwr.supercore.protobuf.client import ProtobufClient, ProtobufClientInterceptor

    secret, address = OperatorSecret(read_secret(server)), f"https://{door(server)}"
    flowers = ProtobufClient.__init__

    def init(
        self: ProtobufClient,
        base_url: str,
        *,
        interceptors: Sequence[ProtobufClientInterceptor] = (),
        **options: Any,
    ) -> None:
        ours = (secret,) if base_url.rstrip("/") == address else ()
        flowers(self, base_url, interceptors=(*interceptors, *ours), **options)

    ProtobufClient.__init__ = init  # type: ignore[method-assign]


if __name__ == "__main__":
    _, *sys.argv = sys.argv
    sys.exit(main(sys.argv[0], os.environ))  # type: ignore[arg-type]
