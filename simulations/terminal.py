"""What the commands of several files share."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from common.identity import printable

__all__ = ["JsonFlag", "near", "print_error"]

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")]


def near(path: str) -> str:
    """The path as it looks from here, where that is shorter."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(path) else path


def print_error(message: str) -> None:
    """One line on standard error, as the command line puts it, whoever's words are in it."""
    print(f"fedhead: {printable(message)}", file=sys.stderr)
