"""What the commands of several files share."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

__all__ = ["JsonFlag", "near", "print_error", "printable"]

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")]


def near(path: str) -> str:
    """The path as it looks from here, where that is shorter."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(path) else path


def printable(text: str | os.PathLike[str]) -> str:
    r"""What a terminal can show of a name; the rest escaped.

    >>> print(printable(os.fsdecode(b"caf\xe9\n.png")))
    caf\xe9\n.png
    """
    shown = os.fsencode(text).decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


def print_error(message: str) -> None:
    """One line on standard error, as the command line puts it."""
    print(f"fedhead: {message}", file=sys.stderr)
