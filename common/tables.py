"""Tables for a terminal of any width: no heading breaks inside a word."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, replace

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

__all__ = ["Fitted"]

_LONG_WORD = 14
"""A cell's word beyond it may break: a path, or a strategy's arguments. With "fold" any may."""


@dataclass(frozen=True)
class Fitted:
    """A table whose columns are at least as wide as the longest word of their heading.

    Where the terminal has no room for that, columns are left out and named below the table.

    Attributes:
        table: with headings of text.
        expendable: headings of the columns that are left out, the first one first.
    """

    table: Table
    expendable: tuple[str, ...] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table at the console's width."""
        table, left_out = copy(self.table), list[str]()
        table.columns = [copy(column) for column in self.table.columns]
        for column in table.columns:
            column.min_width = max(column.min_width or 0, _needed(console, options, column))
            column.width = column.min_width  # rich would measure a column by its longest word
        for heading in self.expendable:
            if (
                Measurement.get(console, options.update(width=1000), table).minimum
                <= options.max_width
            ):
                break
            kept = [column for column in table.columns if str(column.header) != heading]
            left_out += [heading] * (len(kept) < len(table.columns))
            # Rich pads the first and the last column otherwise, and knows them by their number.
            table.columns = [replace(column, _index=number) for number, column in enumerate(kept)]
        _widen(console, options, table)
        yield table
        if left_out:
            names = ", ".join(" ".join(name.split()) for name in left_out)
            yield Text(f"no room for: {names}", style="dim")


def _widen(console: Console, options: ConsoleOptions, table: Table) -> None:
    """Share out what room there is, the first column first: rich takes from the widest alone."""
    wide = options.update(width=1000)
    spare = options.max_width - Measurement.get(console, wide, table).minimum
    for column in table.columns:
        least = column.min_width or 1
        most = max((_measured(console, wide, cell).maximum for cell in _cells(column)), default=1)
        extra = min(max(0, most - least), max(0, spare))
        column.width = least + extra
        spare -= extra


def _needed(console: Console, options: ConsoleOptions, column: Column) -> int:
    heading = _measured(console, options, column.header).minimum
    if column.overflow == "fold":
        return heading
    least = [
        _measured(console, options, cell).maximum
        if column.no_wrap
        else min(_LONG_WORD, _measured(console, options, cell).minimum)
        for cell in column.cells
    ]
    return max([heading, *least])


def _cells(column: Column) -> Iterator[object]:
    yield column.header
    yield from column.cells


def _measured(console: Console, options: ConsoleOptions, cell: object) -> Measurement:
    return Measurement.get(console, options, cell if isinstance(cell, Text) else Text(str(cell)))
