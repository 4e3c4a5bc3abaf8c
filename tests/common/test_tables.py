"""Tables on terminals of any width."""

from __future__ import annotations

import io

import pytest
from rich import box
from rich.console import Console
from rich.table import Table

from common.tables import Fitted

_HEADINGS = ("device", "fingerprint", "examples", "accuracy")


def _table(*, boxed: bool) -> Table:
    table = Table(box=box.HEAVY_HEAD if boxed else None, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in _HEADINGS:
        table.add_column(heading, no_wrap=heading != "device")
    table.add_row("hall of fame, first floor", "1a2b", "1200", "94.3 %")
    return table


def _printed(table: Fitted, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("boxed", [True, False])
@pytest.mark.parametrize("width", range(24, 90, 3))
def test_no_heading_breaks_inside_a_word(width: int, boxed: bool) -> None:
    text = _printed(Fitted(_table(boxed=boxed), ("fingerprint", "examples")), width)
    table, _, left_out = text.partition("no room for: ")
    assert all((heading in table) != (heading in left_out) for heading in _HEADINGS)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width


def test_columns_are_left_out_only_where_there_is_no_room_and_in_order() -> None:
    table = Fitted(_table(boxed=False), ("fingerprint", "examples"))
    assert "no room" not in _printed(table, 60)
    assert "no room for: fingerprint\n" in _printed(table, 35)
    both = " ".join(_printed(table, 20).split())
    assert both.endswith("no room for: fingerprint, examples")


def test_room_that_is_left_goes_to_the_first_column() -> None:
    table = Fitted(_table(boxed=False))
    assert "hall of fame, first floor" in _printed(table, 80)
    assert "hall of fame," in _printed(table, 50)
