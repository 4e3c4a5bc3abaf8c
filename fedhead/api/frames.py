"""Tables as pandas has them, where it is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any  # pandas is optional, and its frames are not typed

__all__ = ["Table", "table"]

Table = Any
"""A ``pandas.DataFrame``; without pandas a list with a dict for each row."""


def table(rows: Sequence[Mapping[str, object]], index: str = "") -> Table:
    """Rows as a table.

    Args:
        rows: a mapping each; what one lacks is missing there.
        index: the column that names the rows of a frame; empty: they are numbered.
    """
    try:
        import pandas
    except ImportError:
        return [dict(row) for row in rows]
    frame = pandas.DataFrame([dict(row) for row in rows])
    return frame.set_index(index) if index and len(frame) else frame
