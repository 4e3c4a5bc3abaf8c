"""Text for logs and terminals: made safe, made short, with a unit or the nearest known name."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence

__all__ = ["byte_text", "one_line", "printable", "said_of", "some", "unknown"]

_LONGEST = 300


def byte_text(value: float | None) -> str:
    """A number of bytes with three digits, powers of 1000; None: "-".

    >>> byte_text(360), byte_text(517_315), byte_text(62_077_618)
    ('360 B', '517 kB', '62.1 MB')
    """
    if value is None:
        return "-"
    amount, unit = value, "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 999.5 or unit == "TB":
            break
        amount /= 1000
    digits = 0 if amount >= 99.95 or unit == "B" else 1 if amount >= 9.995 else 2
    return f"{amount:.{digits}f} {unit}"


def one_line(words: str, most: int = _LONGEST) -> str:
    r"""Text from another machine, fit for a log: short, one line, no control characters.

    >>> one_line("no\nround 1/9  accuracy 1.0 \x1b[2J")
    'no round 1/9  accuracy 1.0  [2J'
    """
    return printable(words[:most])


def printable(words: str) -> str:
    r"""Text in which a space replaces each character that a terminal obeys or cannot show.

    >>> printable("\x1b[31mred\u202e\udc80")
    ' [31mred  '
    """
    return "".join(c if c.isprintable() else " " for c in words)


def some(words: Sequence[str], most: int = 5) -> str:
    """The first words, and "..." if there are more.

    >>> some(["a", "b", "c"], 2)
    'a, b, ...'
    """
    return ", ".join(words[:most]) + (", ..." if len(words) > most else "")


def unknown(what: str, name: str, known: Collection[str]) -> str:
    """A message that a name is unknown, with the nearest known one.

    >>> unknown("field", "detla", ["delta", "gram"])
    "unknown field 'detla', did you mean delta? (known: delta, gram)"
    """
    near = difflib.get_close_matches(name, known, n=1)
    hint = f", did you mean {near[0]}?" if near else ""
    return f"unknown {what} {name[:_LONGEST]!r}{hint} (known: {', '.join(known)})"


def said_of(error: OSError) -> str:
    """What the system says of a file, in one line, with the file's name where it has one.

    >>> said_of(FileNotFoundError(2, "No such file or directory", "a.toml"))
    'a.toml: No such file or directory'
    """
    return f"{error.filename or ''}: {error.strerror or error}".removeprefix(": ")
