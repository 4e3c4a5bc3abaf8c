"""What the commands of several files share."""

from __future__ import annotations

import os
from typing import Annotated

import typer

__all__ = ["JsonFlag", "near"]

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")]


def near(path: str) -> str:
    """The path as it looks from here, where that is shorter."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(path) else path
