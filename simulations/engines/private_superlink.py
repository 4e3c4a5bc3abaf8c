"""Flower's SuperLink for simulations, which answers only the user who has started it.

It listens on loopback. There, every user of the machine could start a run, and its app would be
executed as the user of the simulation; so requests need a secret. It is started as a module with
the secret's file and the arguments of flower-superlink.
"""

from __future__ import annotations

import sys
from pathlib import Path

import uvicorn

from simulations.deploy.app import flower_app
from simulations.deploy.doors import OperatorsDoor
from simulations.deploy.operator import read_secret_file

__all__ = ["main"]


def main(secret: str) -> None:
    """Serve until a signal arrives."""
    app, config = flower_app()
    uvicorn.run(
        OperatorsDoor(app, secret.encode()),
        host=config.host,
        port=config.port,
        ws="none",
        proxy_headers=False,
    )


if __name__ == "__main__":
    main(read_secret_file(Path(sys.argv.pop(1))))
