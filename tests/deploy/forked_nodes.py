"""Commands of Flower's for many nodes, forked from one process: their imports take a minute.

Standard input: a JSON list with the log file, the environment and the arguments of each. SIGTERM
kills them all.
"""

import json
import os
import signal
import sys

from flwr.supercore.cli import flower_superexec
from flwr.supernode.cli import flower_supernode

COMMANDS = {"flower-supernode": flower_supernode, "flower-superexec": flower_superexec}


def start(log: str, environment: dict[str, str], arguments: list[str]) -> int:
    if pid := os.fork():
        return pid
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(environment)
    sys.argv = arguments
    if arguments[0] == "flower-superexec":
        sys.argv += ["--parent-pid", str(os.getppid())]
    sys.exit(COMMANDS[arguments[0]]())


def main() -> None:
    children: set[int] = set()

    def end(*_: object) -> None:
        for child in children:
            os.kill(child, signal.SIGKILL)  # their farewells take as long as a round
        sys.exit()

    signal.signal(signal.SIGTERM, end)
    for child in json.load(sys.stdin):
        children.add(start(*child))
    while children:
        children.remove(os.wait()[0])


if __name__ == "__main__":
    main()
