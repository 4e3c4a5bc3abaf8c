"""Devices' processes for many nodes, forked from one that has imported and read all they need.

Standard input: JSON with the experiment whose data they share, and for each node a log file, its
environment and the arguments of its SuperNode. SIGTERM kills them all.
"""

import gc
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import flwr.supernode.start_client_internal  # noqa: F401 - the imports are what is shared

import client.app  # noqa: F401
from client import fork_server, supernode
from common.experiment import client_shares, run_config


def start(log: str, environment: dict[str, str], command: Callable[[], object]) -> int:
    if pid := os.fork():
        return pid
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(environment)
    sys.exit(command())


def main() -> None:
    children: set[int] = set()

    def end(*_: object) -> None:
        for child in children:
            os.kill(child, signal.SIGKILL)  # their farewells take as long as a round
        sys.exit()

    signal.signal(signal.SIGTERM, end)
    orders = json.load(sys.stdin)
    client_shares(run_config({"experiment": orders["experiment"]}))
    gc.freeze()  # a collection in a child would copy what it shares
    for log, environment, arguments in orders["nodes"]:
        sys.argv = ["supernode", *arguments]
        children.add(start(log, environment, supernode.main))
        socket = Path(arguments[0])
        children.add(start(log, environment, lambda socket=socket: fork_server.serve(socket)))
    while children:
        children.remove(os.wait()[0])


if __name__ == "__main__":
    main()
