"""Flower's command that lets a device in, for many devices in one process.

Each would import Flower again, for a second or two. Started as a module with the files of public
keys, it prints for each what ``flwr supernode register`` says, and a record separator; it ends
with the first that Flower refuses.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path

__all__ = ["RECORD_SEPARATOR", "main"]

RECORD_SEPARATOR = "\x1e"


def main(keys: Sequence[str]) -> None:
    """Register each; whether it was known already is in what Flower says.

    Raises:
        SystemExit: what is wrong with a key has been printed.
    """
    (entry,) = entry_points(group="console_scripts", name="flwr")
    flwr = entry.load()
    for key in keys:
        try:
            flwr(["supernode", "register", key, "--name", Path(key).stem, "--format", "json"])
        except SystemExit as exc:
            if exc.code:
                raise
        print(RECORD_SEPARATOR, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
