"""Rows of the table of what is read back: real files of a kind, and who reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass
class Row:
    """Files of a kind, and what reads them.

    Attributes:
        paths: each is damaged in turn.
        read: gives what the program goes on with.
        rebuilt: what it may go on with instead: nothing, or what was made again or left out.
    """

    paths: list[Path]
    read: Callable[[], Any]
    rebuilt: Callable[[Any], bool] = lambda _: False


Make = Callable[[Path, pytest.FixtureRequest], Row]


def into(rows: dict[str, Make]) -> Callable[[str], Callable[[Make], Make]]:
    """Gives the decorator that adds to these rows what makes a kind's files."""
    return lambda kind: lambda make: rows.setdefault(kind, make)


def is_none(value: Any) -> bool:
    return value is None
