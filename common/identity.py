"""Who is who: the number that stands for a device, and its words as a log may have them."""

from __future__ import annotations

__all__ = ["client_of_node", "one_line", "printable"]

_LONGEST = 300


def client_of_node(node: int) -> int:
    """The client that lives on a device's node.

    Flower's node ids are unsigned 64-bit numbers, its records hold signed ones.

    >>> client_of_node(16043947300866824319)
    6820575264012048511
    """
    return node % 2**63


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
