"""Words for people: whoever's they are, and however many."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence

__all__ = ["one_line", "printable", "some", "unknown"]

_LONGEST = 300


def one_line(words: str, most: int = _LONGEST) -> str:
    r"""What another machine says, fit for a log: one line, no control characters, not long.

    >>> one_line("no\nround 1/9  accuracy 1.0 \x1b[2J")
    'no round 1/9  accuracy 1.0  [2J'
    """
    return printable(words[:most])


def printable(words: str) -> str:
    r"""Words without what a terminal obeys or cannot show: a space is in its place.

    >>> printable("\x1b[31mred\u202e\udc80")
    ' [31mred  '
    """
    return "".join(c if c.isprintable() else " " for c in words)


def some(words: Sequence[str], most: int = 5) -> str:
    """The first of them, and whether there are more.

    >>> some(["a", "b", "c"], 2)
    'a, b, ...'
    """
    return ", ".join(words[:most]) + (", ..." if len(words) > most else "")


def unknown(what: str, name: str, known: Collection[str]) -> str:
    """That there is no such thing, with the nearest there is.

    >>> unknown("field", "detla", ["delta", "gram"])
    "unknown field 'detla', did you mean delta? (known: delta, gram)"
    """
    near = difflib.get_close_matches(name, known, n=1)
    hint = f", did you mean {near[0]}?" if near else ""
    return f"unknown {what} {name[:_LONGEST]!r}{hint} (known: {', '.join(known)})"
